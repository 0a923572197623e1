"""`make screenshots` takes the README's pictures anew, into docs/screenshots.

`python -m tests.browser.screenshots FOLDER` takes every page, light and dark, phone, laptop and wide, to be looked at.
"""

import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy.orm import Session

from app.core.vocabulary import RunKind
from app.store import accounts, embedded, migrate, passwords, runs
from app.store.db import make_engine, session_factory
from app.store.models import Account
from app.web.security import signed
from tests.browser import server, stage

FOLDER = server.ROOT / "docs" / "screenshots"
SIZES = {"phone": (390, 844), "laptop": (1366, 850), "wide": (1920, 1080)}
SCHEMES = ("light", "dark")
README = {
    "judge-laptop-light",
    "judge-laptop-dark",
    "judge-phone-light",
    "home-laptop-light",
    "home-laptop-dark",
    "run-live-laptop-light",
    "preparing-laptop-light",
    "data-laptop-light",
}


def main(folder: Path, wanted: Collection[str] | None) -> None:
    """Furnish a database, go through the product as it fills, and keep what is seen."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        url = embedded.start(place, durable=False)
        migrate.upgrade(url)
        engine = make_engine(url)
        sessions = session_factory(engine)
        try:
            with server.serve(url, place) as address, sync_playwright() as playwright:
                browser = server.launch(playwright)
                with sessions() as s:
                    tour(s, Camera(browser, address, folder, wanted))
                browser.close()
        finally:
            engine.dispose()
            embedded.stop(place)


class Camera:
    """Takes a page as one person, in every size and scheme."""

    def __init__(self, browser: Browser, address: str, folder: Path, wanted: Collection[str] | None) -> None:
        self.browser, self.address, self.folder, self.wanted = browser, address, folder, wanted

    def take(
        self,
        name: str,
        path: str,
        token: str | None = None,
        sizes: tuple[str, ...] = tuple(SIZES),
        before: Callable[[Page], object] | None = None,
    ) -> None:
        """One page, as whoever has this token."""
        for size in sizes:
            width, height = SIZES[size]
            for scheme in SCHEMES:
                if self.wanted is not None and f"{name}-{size}-{scheme}" not in self.wanted:
                    continue
                context = self.browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,  # type: ignore[arg-type]
                    reduced_motion="reduce",
                    has_touch=size == "phone",
                    is_mobile=size == "phone",
                )
                if token:
                    context.add_cookies([{"name": "pairwright", "value": token, "url": self.address}])
                page = context.new_page()
                page.goto(self.address + path)
                page.wait_for_timeout(400)
                if before:
                    before(page)
                full = size != "phone" and "judge" not in name
                page.screenshot(path=self.folder / f"{name}-{size}-{scheme}.png", full_page=full)
                context.close()


def tour(s: Session, camera: Camera) -> None:
    """From an empty installation to a trained policy."""
    link = accounts.issue_setup_token(s)
    s.commit()
    camera.take("setup", f"/setup/{link}", sizes=("laptop",))
    camera.take("sign-in", "/sign-in", sizes=("phone", "laptop"))
    set_ = stage.furnish(s, pairs=14)
    invitation = accounts.invite(s, set_.project.id, stage.Role.ANNOTATOR, set_.owner.id)
    s.commit()
    camera.take("join", f"/join/{invitation}", sizes=("laptop",))
    owner = signed_in(s, set_.owner)
    base = f"/p/{set_.project.slug}"
    camera.take("home-first", base, owner, sizes=("laptop",))
    camera.take("judge", f"{base}/judge", signed_in(s, set_.annotators[0]))
    camera.take("judge-keys", f"{base}/judge", owner, sizes=("laptop",), before=lambda page: page.keyboard.press("?"))
    stage.fill(s, set_.project, set_.policy, 0, stage.letters(400)[14:])
    for one, most in zip(set_.annotators, (150, 120, 90), strict=True):
        stage.judge_all(s, set_, one, at_most=most)
    stage.train_reward(s, set_)
    stage.train_ppo(s, set_, finish=False, upto=15)
    s.commit()
    running = runs.runs_of(s, set_.project.id)[0]
    camera.take("home-training", base, owner, sizes=("laptop",))
    camera.take("run-live", f"{base}/runs/{running.id}", owner)
    metrics = {"reward": 0.84, "kl": 3.1, "entropy": 1.9, "length": 42.0}
    stage.register(s, set_.project, stage.CheckpointKind.POLICY, running.id, set_.policy, metrics)
    runs.append_metrics(s, running.id, running.attempt, [stage.ppo_row(i) for i in range(16, 25)])
    runs.finish(s, running.id, running.attempt, stage.RunStatus.FINISHED, metrics)
    s.commit()
    reward = next(run for run in runs.runs_of(s, set_.project.id) if run.kind is RunKind.REWARD)
    camera.take("home", base, owner)
    camera.take("run-reward", f"{base}/runs/{reward.id}", owner, sizes=("laptop",))
    for name in ("runs", "policies", "data", "people"):
        camera.take(name, f"{base}/{name}", owner, sizes=("phone", "laptop"))
    make_link = "button:has-text('Make the link')"
    camera.take("invited", f"{base}/people", owner, sizes=("laptop",), before=lambda page: press(page, make_link))
    camera.take("person", f"{base}/people/{set_.annotators[0].id}", owner)
    link = "button:has-text('Make a password link')"
    person = f"{base}/people/{set_.annotators[0].id}"
    camera.take("password-link", person, owner, sizes=("phone", "laptop"), before=lambda page: press(page, link))
    camera.take("account", "/account", signed_in(s, set_.annotators[0]))
    lost = passwords.make_reset(s, set_.annotators[0].id, None)
    s.commit()
    camera.take("reset", f"/reset/{lost}", sizes=("phone", "laptop"))
    camera.take("start-ppo", f"{base}/runs/start/ppo", owner, sizes=("laptop",))
    fresh = stage.unprepared(s, set_)
    camera.take("preparing", f"/p/{fresh.slug}", signed_in(s, set_.owner), sizes=("phone", "laptop"))
    camera.take("not-found", f"{base}/nothing", owner, sizes=("laptop",))


def press(page: Page, button: str) -> None:
    """Press a button and wait for what it brings."""
    page.click(button)
    page.wait_for_timeout(400)


def signed_in(s: Session, account: Account) -> str:
    """A session of this person, as the cookie carries it."""
    token = accounts.open_session(s, account.id)
    s.commit()
    return signed(server.KEY, token)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), None)
    else:
        main(FOLDER, README)
