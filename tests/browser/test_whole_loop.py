"""The product as a stranger meets it: from the link on the console to pairs that a better policy wrote."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.installation import Installation, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

JUDGMENTS = 34
MINUTE = 60_000
OPEN = """SELECT count(*) FROM slot JOIN comparison ON comparison.id = comparison_id
JOIN checkpoint ON checkpoint.id = checkpoint_id WHERE slot.state = 'free' """


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Installation]:
    """`serve` on an empty folder, everything small; more prompts held out than usual, for there are few judgments."""
    made = Installation(tmp_path / "home", HELDOUT_SHARE="0.2", POOL_TARGET="16", TRAINING_THREADS="1")
    made.start()
    yield made
    made.end()


@pytest.fixture
def page(started: Installation, chromium: Browser) -> Iterator[Page]:
    """A page in a real Chromium in which nothing may go wrong unseen."""
    problems: list[str] = []
    expect.set_options(timeout=MINUTE)
    page = chromium.new_page(viewport={"width": 1366, "height": 850})
    page.set_default_timeout(MINUTE)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    yield page
    page.close()
    assert problems == []


def judge(page: Page, times: int) -> None:
    """Judge by key alone, as an annotator does; each judgment is saved before the next."""
    tally = page.locator("[data-tally]")
    for i in range(times):
        expect(page.locator("[data-task]:visible")).to_have_count(1, timeout=2 * MINUTE)
        page.wait_for_load_state()
        page.wait_for_timeout(200)  # a key that follows the pair too fast is not taken for a judgment of it
        before = int(tally.get_attribute("data-tally") or 0)
        page.keyboard.press("ArrowLeft" if i % 2 else "ArrowRight")
        expect(tally).to_have_attribute("data-tally", str(before + 1))


def test_from_the_console_link_to_pairs_of_a_promoted_policy(started: Installation, page: Page):
    began = time.monotonic()

    def passed(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}")

    page.goto(started.owner_link())
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Make the account and begin").click()
    expect(page.get_by_role("heading", name="Preparing the first policy")).to_be_visible()
    expect(page.get_by_role("heading", name="The loop")).to_be_visible(timeout=5 * MINUTE)
    passed("the starter is trained")

    page.get_by_role("link", name="Judge the first pairs").click()
    page.get_by_role("button", name="I have read them").click()
    expect(page.locator("[data-task]:visible .source")).to_contain_text("v1", timeout=2 * MINUTE)
    passed("the first pair is there")
    judge(page, JUDGMENTS)
    passed(f"{JUDGMENTS} pairs are judged")

    page.goto(f"{started.url}/p/support")
    page.locator('form[action$="/train"] button').click()
    expect(page).to_have_url(re.compile(r"/p/support/runs/[0-9a-f-]{36}$"))
    expect(page.locator(".results")).to_contain_text("%", timeout=5 * MINUTE)
    passed("the reward model has its held-out accuracy")

    page.goto(f"{started.url}/p/support")
    promote = page.get_by_role("button", name="Promote v2")
    expect(promote).to_be_visible(timeout=8 * MINUTE)
    assert started.ask("SELECT kind, status FROM run ORDER BY number") == [
        ("sft", "finished"),
        ("reward", "finished"),
        ("ppo", "finished"),
    ]
    passed("PPO has finished")
    promote.click()
    expect(page.locator("main")).to_contain_text(re.compile(r"Policy v2 has been writing|promoted v2"))

    # What was already on the table is judged for the policy that wrote it; then come the new one's.
    page.goto(f"{started.url}/p/support/judge")
    source = page.locator("[data-task]:visible .source")
    for _ in range(6):
        expect(page.locator("[data-task]:visible")).to_have_count(1, timeout=2 * MINUTE)
        if "v2" in source.inner_text():
            break
        judge(page, 1)
    expect(source).to_contain_text("v2")
    judge(page, 1)
    passed("a pair of the new policy is judged")
    assert until(lambda: started.ask(OPEN + "AND name = 'v2'")[0][0] > 0, 10)
    open_v1 = started.ask(OPEN + "AND name = 'v1'")
    assert open_v1 == [(0,)], "what nobody has met of the old policy is retired"
