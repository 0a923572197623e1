"""Chats in a real browser: by key, streamed, stopped, reloaded, with strength, on a phone, and for a screen reader."""

import json
import os
import time
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.core.vocabulary import Mode, Verdict
from app.store.models import Chat, Project
from tests.browser import server, stage
from tests.browser.conftest import Desk, Watch
from tests.talking import Talker, served

HELLO = "Hello, my kettle arrived with a crack in it. Order 4312."
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    made = Talker()
    with served(made.app()) as made.address:  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="module")
def site(site_database: str, talker: Talker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web process whose sampler says what it is told to."""
    os.environ["PAIRWRIGHT_SAMPLER_URL"] = talker.address  # type: ignore[attr-defined]
    try:
        with server.serve(site_database, tmp_path_factory.mktemp("home")) as address:
            yield address
    finally:
        del os.environ["PAIRWRIGHT_SAMPLER_URL"]


@pytest.fixture
def watch(chromium: Browser, site: str, talker: Talker) -> Iterator[Watch]:
    talker.pause, talker.left, talker.whole = 0.0, 0, 0
    _, good, poor = stage.letters(1)[0]
    talker.say = lambda model, n: [word + " " for word in (good if n % 2 else poor).split(" ")]
    made = Watch(chromium, site)
    yield made
    for context in made.contexts:
        context.close()
    assert made.complaints == []
    assert made.off_origin == []


@pytest.fixture
def room_of(watch: Watch, sessions: sessionmaker[Session]) -> Callable[..., Desk]:
    """Makes a project of chats."""

    def build(**settings: object) -> Desk:
        desk = Desk(watch, sessions, 0)
        with sessions() as s:
            project = s.get_one(Project, desk.project.id)
            for name, value in {"mode": Mode.CHAT, "chat_turns": 3, **settings}.items():
                setattr(project, name, value)
            s.commit()
        return desk

    return build


def say(page: Page, words: str = HELLO) -> None:
    """Types a message and sends it by key."""
    page.locator("#message").fill(words)
    page.keyboard.press("Enter")


def ready(page: Page) -> None:
    """Waits for both answers, and until a key would be meant for them."""
    expect(page.get_by_role("button", name="Left is better")).to_be_enabled()
    page.wait_for_timeout(170)


def place(page: Page, selector: str) -> dict[str, float]:
    return page.locator(selector).bounding_box()  # type: ignore[return-value]


def test_a_chat_from_the_first_word_to_the_last_turn_by_keys(room_of, sessions: sessionmaker[Session], talker: Talker):
    desk = room_of(chat_turns=2)
    page = desk.open(path="/chat")
    expect(page.get_by_role("heading", name="Begin a chat")).to_be_visible()
    expect(page.locator("#message")).to_be_focused()
    page.locator("#message").fill("Two lines:")
    page.keyboard.press("Shift+Enter")
    assert page.locator("#message").input_value() == "Two lines:\n"
    talker.pause = 0.02
    say(page)
    expect(page.locator("[data-answer=left]")).not_to_be_empty()
    expect(page.get_by_role("button", name="Left is better")).to_be_disabled()
    before = place(page, ".spread"), place(page, ".spread > section:first-child h2"), place(page, "#verdicts")
    assert page.locator("#announce").inner_text() == "Two answers are being written."
    ready(page)
    # Nothing has moved while the answers came, nor when they were stored; both pages are of one width.
    after = place(page, ".spread"), place(page, ".spread > section:first-child h2"), place(page, "#verdicts")
    assert [(box["x"], box["y"]) for box in before] == [(box["x"], box["y"]) for box in after]
    left, right = place(page, ".spread > section:first-child"), place(page, ".spread > section:last-child")
    assert abs(left["width"] - right["width"]) < 0.01
    assert page.locator("#announce").inner_text() == "Both answers are there. Choose one."

    chosen = page.locator("[data-answer=right]").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#message")).to_be_focused()
    assert page.locator("#message").input_value() == ""
    expect(page.locator("[data-turn=assistant]")).to_have_text(chosen)
    expect(page.locator("#turn")).to_have_text("turn 1 of 2")
    say(page, "And when?")
    ready(page)
    page.keyboard.press("b")
    expect(page.locator(".hint")).to_contain_text("turn 2 of 2. The chat is finished and stored")
    assert [one.verdict for one in desk.said()] == [Verdict.RIGHT, Verdict.BOTH_BAD]
    assert all(one.active_ms >= 150 for one in desk.said())


def test_a_reload_keeps_the_draft_the_transcript_and_the_choice_that_waits(room_of):
    desk = room_of()
    page = desk.open(path="/chat")
    page.locator("#message").fill("Not sent yet")
    page.reload()
    assert page.locator("#message").input_value() == "Not sent yet"
    say(page)
    ready(page)
    page.reload()
    ready(page)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".turn")).to_have_count(2)
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    assert page.locator("#message").input_value() == ""
    page.get_by_role("button", name="Undo").click()
    ready(page)
    page.keyboard.press("s")
    expect(page.locator(".hint")).to_contain_text("Skipped: neither answer goes on")
    assert page.locator("#message").input_value() == HELLO
    page.locator("#compose").get_by_role("button", name="End this chat").click()
    expect(page.get_by_role("heading", name="Begin a chat")).to_be_visible()


@pytest.mark.parametrize("how", ["escape", "tab"])
def test_stopping_or_closing_the_tab_stops_the_sampler_and_loses_no_word(
    room_of, sessions: sessionmaker[Session], talker: Talker, how: str
):
    desk = room_of()
    context = desk.watch.context(desk.token())
    page = desk.open(context, path="/chat")
    talker.say, talker.pause = (lambda model, n: ["word "] * 1000), 0.05
    say(page)
    expect(page.locator("[data-answer=left]")).not_to_be_empty()
    if how == "escape":
        page.keyboard.press("Escape")
        expect(page.locator("#note")).to_contain_text("Stopped. Nothing of this turn was stored")
    else:
        page.close()
    deadline = time.monotonic() + 10
    while talker.left < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page = page if how == "escape" else desk.open(context, path="/chat")
    assert page.locator("#message").input_value() == HELLO
    with sessions() as s:
        assert s.scalars(select(Chat).where(Chat.project_id == desk.project.id)).all() == []


def test_strength_has_its_eight_keys(room_of, sessions: sessionmaker[Session]):
    desk = room_of(ask_strength=True)
    page = desk.open(path="/chat")
    for key in ("1", "7"):
        say(page)
        expect(page.get_by_role("button", name="Left: Much better")).to_be_enabled()
        page.wait_for_timeout(170)
        page.keyboard.press(key)
        expect(page.locator("#message")).to_be_focused()
    assert [(one.verdict, one.strength) for one in desk.said()] == [(Verdict.LEFT, 4), (Verdict.RIGHT, 3)]


def test_a_refusal_is_said_where_the_person_looks_and_the_words_stay(room_of, talker: Talker):
    desk = room_of()
    page = desk.open(path="/chat")
    talker.say = lambda model, n: [""]
    say(page)
    expect(page.locator("#note")).to_contain_text("An answer was empty twice")
    assert page.locator("#message").input_value() == HELLO
    expect(page.locator(".turn")).to_have_count(0)


def test_on_a_phone_one_stands_below_the_other_and_nothing_overflows(room_of):
    desk = room_of()
    page = desk.open(path="/chat", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    say(page)
    expect(page.get_by_role("button", name="First is better")).to_be_enabled()
    first, second = place(page, ".spread > section:first-child"), place(page, ".spread > section:last-child")
    assert first["x"] == second["x"]
    assert second["y"] >= first["y"] + first["height"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Second is better").tap()
    expect(page.locator("[data-turn=assistant]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_its_way_in_every_state(room_of, scheme: str):
    desk = room_of()
    page = desk.open(path="/chat", color_scheme=scheme, reduced_motion="reduce")
    faults = [faults_of(page)]
    say(page)
    ready(page)
    faults.append(faults_of(page))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("[data-turn=assistant]")).to_be_visible()
    faults.append(faults_of(page))
    assert faults == [[], [], []]


def faults_of(page: Page) -> list[str]:
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}}).response["violations"]
    return [f"{one['id']}: {json.dumps([node['html'] for node in one['nodes']])}" for one in found]
