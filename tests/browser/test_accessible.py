"""Every page for everyone: axe finds nothing in light or dark, all of it by keyboard, at 320 px, without motion.

The pages come from the application's own routes, so that a new one cannot be forgotten.
"""

import re
import uuid
from collections.abc import Iterator

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.core.vocabulary import Role, RunKind
from app.store import accounts, checkpoints, passwords, projects, prompts, runs
from app.store.models import Account, Judgment, Membership
from app.web.access import ROLES, Policy, declared
from app.web.routes import ROUTERS
from app.web.security import signed
from tests.browser import server, stage
from tests.browser.conftest import Watch, settle

PAGES = [(path, policy) for method, path, policy in declared(ROUTERS) if method == "GET"]
RULES = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
COLOURS = {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]}
WRITTEN = """# Returning a kettle

You have **two options**, *both* free; [our terms](https://example.com/terms) or https://example.com/returns say more.

#### Deeper than it should be

1. Send it back:
   - in the box, with `ORD-4312`
2. Keep it.

> We reply within a day, ![a clock](https://example.com/clock.png).

| Option | a | b | c | d | e | f |
|:-------|--:|---|---|---|---|:-:|
| Send back | 5 | 1 | 2 | 3 | 4 | 5 |

The cost is $E = \\sum_i p_i c_i$, or

$$ E = \\int_0^\\infty x\\, f(x)\\,dx = \\frac{1}{\\lambda} + \\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix} $$

```python
@decorated
def refund(order: int, share: float = 0.5) -> float:
    \"\"\"What the customer gets back.\"\"\"
    return round(price(order) * share, 2)  # half
```

```diff
+ more
- less
```
"""
FOREIGN = "مرحبًا، **نأسف** لما حدث.\n\n- الطلب `4312`\n\n請把水壺寄回。\x1b\u202e\n\n" + "a" * 200


# What makes a page scroll sideways: it stands out to the right, and nothing around it scrolls or hides it.
BEYOND = """() => document.documentElement.scrollWidth <= 320 ? [] :
[...document.querySelectorAll("body *")].filter(node => {
    for (let up = node.parentElement; up; up = up.parentElement)
        if (up !== document.body && getComputedStyle(up).overflowX !== "visible") return false;
    return node.getBoundingClientRect().right > 321;
}).slice(0, 5).map(node => node.outerHTML.slice(0, 120))"""


class Tour:
    """A furnished project, its people, and what to put where a path has a name in braces."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        with sessions() as s:
            while taken := runs.claim_run(s, "test"):  # what other tests left waiting
                runs.finish(s, taken.id, taken.attempt, stage.RunStatus.CANCELLED, {})
            project = projects.create_project(s, f"p-{uuid.uuid4().hex}", "Support replies", guidelines=WRITTEN)
            self.policy = stage.register(s, project, stage.CheckpointKind.POLICY, None, None, {"reward": 0.1})
            checkpoints.promote(s, project.id, self.policy.id, None)
            people = {role: stage.person(s, f"{role.value} {uuid.uuid4().hex}", project, role) for role in Role}
            set_ = stage.Stage(
                project, self.policy, people[Role.ADMIN], [people[Role.ANNOTATOR]], people[Role.RESEARCHER]
            )
            prompts.add_prompts(s, project, [[{"role": "user", "content": "Waiting for an answer."}]], "test")
            stage.fill(s, project, self.policy, 120)
            for role, most in ((Role.ANNOTATOR, 80), (Role.ADMIN, 20)):
                stage.judge_all(s, set_, people[role], at_most=most)
            stage.train_reward(s, set_)
            stage.train_ppo(s, set_)
            stage.train_ppo(s, set_, finish=False, upto=9)
            self.running = runs.runs_of(s, project.id)[0]
            first = s.query(stage.Prompt).filter_by(project_id=project.id).order_by(stage.Prompt.id).first()
            rows = [
                {"step": step, "prompt_id": str(first.id), "completion": text, "reward": 0.1}
                for step, text in ((1, FOREIGN), (9, WRITTEN))
            ]
            runs.append_samples(s, self.running.id, self.running.attempt, rows)
            stage.fill(s, project, self.policy, 0, [(f"{WRITTEN} {i}", FOREIGN, WRITTEN) for i in range(4)])
            self.slug, self.people = project.slug, people
            self.tokens = {role: signed(server.KEY, accounts.open_session(s, one.id)) for role, one in people.items()}
            said = {role: judged(s, one) for role, one in people.items()}
            self.named: dict[str, list[object] | dict[Role, object]] = {
                "slug": [project.slug],
                "reset": [passwords.make_reset(s, people[Role.ANNOTATOR].id, None)],
                "token": [accounts.invite(s, project.id, Role.ANNOTATOR, people[Role.ADMIN].id)],
                "run_id": [run.id for run in runs.runs_of(s, project.id)],
                "kind": list(RunKind),
                "version": [1],
                "account_id": [people[Role.ANNOTATOR].id],
                "entry_id": said,
            }
            for one in people.values():
                s.get_one(Membership, (project.id, one.id)).guidelines_read = 1
            s.commit()

    def paths(self, path: str, role: Role | None) -> list[str]:
        """A route's path with everything that can stand in its braces."""
        filled = [path]
        for name in re.findall(r"\{(\w+)\}", path):
            assert name in self.named, f"say in Tour.named what {{{name}}} of {path} can be"
            values = self.named["reset" if path.startswith("/reset/") else name]
            given = [values[role]] if isinstance(values, dict) and role else list(values)
            filled = [one.replace(f"{{{name}}}", str(value)) for one in filled for value in given]
        return filled


def judged(s: Session, account: Account) -> object:
    """A judgment of this person."""
    return s.scalars(select(Judgment.id).where(Judgment.account_id == account.id).limit(1)).one_or_none()


@pytest.fixture(scope="module")
def tour(sessions: sessionmaker[Session]) -> Iterator[Tour]:
    """The project; its run ends with the tests, or its lease would run out and others would be handed it."""
    made = Tour(sessions)
    yield made
    with sessions() as s:
        runs.finish(s, made.running.id, made.running.attempt, stage.RunStatus.CANCELLED, {})
        s.commit()


def is_page(address: str, token: str | None) -> bool:
    """Whether a browser that goes there gets a whole page: not a fragment, a download, a stream or another address."""
    going = {"sec-fetch-mode": "navigate", "sec-fetch-site": "same-origin", "accept": "text/html"}
    cookies = {"pairwright": token} if token else None
    with httpx.stream("GET", address, headers=going, cookies=cookies, trust_env=False, timeout=20) as answer:
        if not answer.headers.get("content-type", "").startswith("text/html"):
            return False
        if answer.is_redirect:
            return False
        start = next(answer.iter_bytes(64), b"")
        return start.lower().startswith(b"<!doctype html")


# What this project, on this installation, does not have; test_chat.py and test_sign_on.py ask axe about theirs.
ELSEWHERE = {"/p/{slug}/chat", "/oidc/callback", "/oidc/start"}


def pages(tour: Tour, site: str, role: Role | None) -> list[str]:
    """Every page that somebody of this role can open; without a role, that anybody can."""
    found = []
    for path, policy in PAGES:
        if path in ELSEWHERE:
            continue
        roles = ROLES.get(policy, frozenset(Role)) if policy else frozenset()
        if (role is None) != (policy is Policy.PUBLIC) or (role and role not in roles):
            continue
        for one in tour.paths(path, role):
            if is_page(site + one, tour.tokens[role] if role else None):
                found.append(one)
    return found


def found_by_axe(axe: Axe, page: Page, options: dict[str, object]) -> list[str]:
    """What axe complains of, a line each."""
    violations = axe.run(page, options=options).response["violations"]
    return [
        f"{page.url} {one['id']}: {node['html'][:160]} ({node['failureSummary'][:200]})"
        for one in violations
        for node in one["nodes"][:3]
    ]


def ready(page: Page) -> None:
    """Waits until a page stands still."""
    page.wait_for_load_state()
    if page.locator("#state[data-state]").count():
        settle(page)


def context_of(watch: Watch, tour: Tour, role: Role | None, **settings: object) -> BrowserContext:
    """A fresh profile of somebody with this role."""
    return watch.context(tour.tokens[role] if role else None, reduced_motion="reduce", **settings)


@pytest.mark.parametrize("role", [*Role, None], ids=lambda role: role.value if role else "nobody")
def test_axe_finds_nothing_and_nothing_is_cut_off_at_320_pixels(watch: Watch, tour: Tour, role: Role | None):
    axe = Axe()
    page = watch.page(context_of(watch, tour, role, color_scheme="light"))
    opened = pages(tour, watch.site, role)
    assert len(opened) >= {Role.ADMIN: 12, Role.RESEARCHER: 6, Role.ANNOTATOR: 1, None: 2}[role]
    found = []
    for path in opened:
        page.set_viewport_size({"width": 1366, "height": 850})
        page.emulate_media(color_scheme="light")
        answer = page.goto(watch.site + path)
        assert answer is not None
        assert answer.status == 200, path
        ready(page)
        found += found_by_axe(axe, page, RULES)
        page.emulate_media(color_scheme="dark")
        found += found_by_axe(axe, page, COLOURS)
        page.set_viewport_size({"width": 320, "height": 640})
        page.wait_for_timeout(50)
        found += [f"{page.url} at 320 px: {one}" for one in page.evaluate(BEYOND)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", ["/nothing", "/p/nothing", "/p/{slug}/people"])
def test_errors_are_pages_for_everyone_too(watch: Watch, tour: Tour, path: str):
    watch.expect_failed_requests = True
    page = watch.page(context_of(watch, tour, Role.ANNOTATOR))
    page.goto(watch.site + tour.paths(path, None)[0])
    assert found_by_axe(Axe(), page, RULES) == []


TABBABLE = """() => [...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex]"
)].filter(node => node.tabIndex >= 0 && !node.disabled && node.type !== "hidden"
    && node.checkVisibility({ visibilityProperty: true })
    && !(node.type === "radio" && !node.checked && document.querySelector(`input[name="${node.name}"]:checked`))
).map((node, i) => { node.dataset.tab = i; return node.outerHTML.slice(0, 120); })"""
FOCUSED = """() => {
    const node = document.activeElement;
    if (!node || node === document.body) return null;
    const box = node.getBoundingClientRect();
    const style = getComputedStyle(node);
    const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    const seen = box.bottom > 0 && box.top < innerHeight && box.width > 0;
    return { tab: node.dataset.tab ?? null, ring: ring || node.matches("main"), seen };
}"""


def test_everything_is_reached_by_key_in_sight_and_with_a_ring(watch: Watch, tour: Tour):
    page = watch.page(context_of(watch, tour, Role.ADMIN, viewport={"width": 1366, "height": 850}))
    lacking = []
    seen_shapes = set()
    for path in pages(tour, watch.site, Role.ADMIN):
        shape = re.sub(r"[0-9a-f-]{36}", "", path)
        if shape in seen_shapes:
            continue
        seen_shapes.add(shape)
        page.goto(watch.site + path)
        ready(page)
        page.evaluate("document.activeElement.blur()")
        names = page.evaluate(TABBABLE)
        reached = {}
        for _ in range(len(names) + 3):
            page.keyboard.press("Tab")
            now = page.evaluate(FOCUSED)
            if now and now["tab"] is not None:
                reached[int(now["tab"])] = now["ring"] and now["seen"]
        lacking += [f"{path}: {name}" for i, name in enumerate(names) if not reached.get(i)]
    assert lacking == []


def test_the_first_tab_skips_the_bar(watch: Watch, tour: Tour):
    page = watch.page(context_of(watch, tour, Role.ADMIN))
    page.goto(f"{watch.site}/p/{tour.slug}/data")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('main').contains(document.activeElement)")


def test_a_dialog_keeps_the_focus_and_gives_it_back(watch: Watch, tour: Tour):
    page = watch.page(context_of(watch, tour, Role.ANNOTATOR))
    page.goto(f"{watch.site}/p/{tour.slug}/judge")
    settle(page)
    opener = page.locator("[data-act=keys]").first
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog#keys")).to_be_visible()
    assert found_by_axe(Axe(), page, RULES) == []
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(page.locator("dialog#keys")).to_be_hidden()
    expect(opener).to_be_focused()


def test_nothing_moves_for_those_who_asked_for_no_motion(watch: Watch, tour: Tour):
    page = watch.page(context_of(watch, tour, Role.ANNOTATOR))
    page.goto(f"{watch.site}/p/{tour.slug}/judge")
    settle(page)
    page.keyboard.press("s")
    assert page.evaluate("document.getAnimations().length") == 0
    moving = (
        "[...document.querySelectorAll('*')].filter(n => parseFloat(getComputedStyle(n).transitionDuration) > 0).length"
    )
    assert page.evaluate(moving) == 0


def test_texts_can_be_read_in_forced_colours_and_as_they_were_written(watch: Watch, tour: Tour):
    page = watch.page(context_of(watch, tour, Role.RESEARCHER, forced_colors="active"))
    page.goto(f"{watch.site}/p/{tour.slug}/runs/{tour.running.id}")
    button = page.get_by_role("button", name="Raw text")
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".samples .shown").first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.text .code')).borderTopStyle") == "solid"
    page.keyboard.press("m")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".samples .raw", has_text="U+202E")).to_be_visible()
    expect(page.locator(".samples .shown").first).to_be_hidden()
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert found_by_axe(Axe(), page, RULES) == []
    button.click()
    expect(page.locator(".samples .shown").first).to_be_visible()
