"""Strength, rankings, and what is said beside a judgment, in a real browser."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from sqlalchemy import select

from app.core.vocabulary import Mode, Verdict
from app.store.models import Completion, Draft, JudgmentRevision
from tests.browser.conftest import Desk, settle, shown

LEFT, RIGHT = Verdict.LEFT, Verdict.RIGHT


def saved_draft(desk: Desk) -> dict:
    """The newest draft of the person."""
    with desk.sessions() as s:
        query = select(Draft.body).where(Draft.account_id == desk.person.id).order_by(Draft.updated_at.desc()).limit(1)
        return s.scalars(query).one_or_none() or {}


def order(page: Page) -> str:
    """The numbers in the strip, best first."""
    return "".join(page.locator(".chips .chip").all_inner_texts())


def as_shown(desk: Desk, said: JudgmentRevision) -> list[list[int]]:
    """The tiers of a ranking in the numbers that the person saw."""
    return [sorted(said.shown_order.index(position) + 1 for position in tier) for tier in said.tiers]


def complaints(page: Page) -> list[str]:
    """What axe finds."""
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in Axe().run(page).response["violations"]]


@pytest.fixture
def ranks(desk_of) -> Desk:
    """A project that ranks four answers."""
    return desk_of(5, mode=Mode.RANK, answers=4, ask_ratings=True)


def test_strength_has_a_key_for_each_step_and_the_arrows_still_choose_a_side(desk_of):
    desk = desk_of(6, ask_strength=True)
    page = desk.open()
    for number, key in enumerate(("1", "4", "5", "8", "ArrowRight"), 1):
        page.keyboard.press(key)
        expect(page.locator("#tally")).to_contain_text(f"{number} today")
        settle(page)
    page.get_by_role("button", name="Left: Slightly").click()
    expect(page.locator("#tally")).to_contain_text("6 today")
    said = [(one.verdict, one.strength) for one in desk.said()]
    assert said == [(LEFT, 4), (LEFT, 1), (RIGHT, 1), (RIGHT, 4), (RIGHT, None), (LEFT, 2)]


def test_without_scripts_a_button_says_side_and_strength(desk_of):
    desk = desk_of(2, ask_strength=True)
    page = desk.open(java_script_enabled=False)
    page.get_by_role("button", name="Right: Much better").click()
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert [(one.verdict, one.strength) for one in desk.said()] == [(RIGHT, 4)]


def test_answers_are_ranked_by_typing_their_numbers_and_tied_by_a_key(ranks: Desk):
    page = ranks.open()
    for key in ("3", "1", "=", "4"):
        page.keyboard.press(key)
    assert order(page) == "3142"
    expect(page.locator("#announce")).to_have_text("Answer 4, 3rd.")
    assert page.locator("[data-task]:not([hidden]) [data-rank]").all_inner_texts() == ["= 1st", "4th", "= 1st", "3rd"]
    page.keyboard.press("Enter")
    expect(page.locator("#tally")).to_contain_text("1 today")
    settle(page)
    page.keyboard.press("0")
    settle(page)
    page.keyboard.press("b")
    settle(page)
    for key in ("ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    first, same, bad = ranks.said()
    assert (first.verdict, as_shown(ranks, first)) == (None, [[1, 3], [4], [2]])
    assert (same.tiers, same.both_bad, bad.tiers, bad.both_bad) == ([[0, 1, 2, 3]], False, [[0, 1, 2, 3]], True)


def test_an_order_that_nobody_touched_asks_before_it_is_taken(ranks: Desk):
    page = ranks.open()
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("You have not changed the order")
    assert ranks.said() == []
    page.keyboard.press("Enter")
    settle(page)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("You have not placed 1, 3, 4")
    with page.expect_response("**/drafts/*"):
        pass
    page.reload()
    settle(page)
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("You have not placed 1, 3, 4")
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    settle(page)
    assert [as_shown(ranks, one) for one in ranks.said()] == [[[1], [2], [3], [4]], [[2], [1], [3], [4]]]


def test_an_answer_is_moved_by_arrows_by_the_mouse_and_the_server_keeps_the_order(ranks: Desk):
    page = ranks.open()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#announce")).to_have_text("Answer 1, 2nd.")
    assert order(page) == "2134"
    last, first = page.locator(".chip").nth(3).bounding_box(), page.locator(".chip").nth(0).bounding_box()
    page.mouse.move(last["x"] + 9, last["y"] + 9)
    page.mouse.down()
    page.mouse.move(first["x"] + 30, first["y"] + 12, steps=6)
    page.mouse.move(first["x"] + 2, first["y"] + 12)
    page.mouse.up()
    assert order(page) == "4213"
    task = shown(page)
    with page.expect_response("**/drafts/*"):
        pass
    page.reload()
    settle(page)
    assert (shown(page), order(page)) == (task, "4213")
    page.get_by_role("button", name="Take this order").click()
    settle(page)
    [said] = ranks.said()
    assert as_shown(ranks, said) == [[4], [2], [1], [3]]
    page.keyboard.press("u")
    page.wait_for_selector(f'[data-comparison="{task}"]:not([hidden])')


def test_flags_ratings_a_reason_and_a_better_answer_go_with_the_judgment(desk_of):
    desk = desk_of(3, ask_ratings=True)
    page = desk.open()
    before = page.locator("[data-task]:not([hidden]) [data-answer=right]").inner_text()
    page.keyboard.press("f")
    for key in ("w", "2", "ArrowDown", "5"):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("r")
    page.keyboard.type("Left blames us, b 0.")
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ideal")).to_have_value(before)
    page.keyboard.type(" And thank you.")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tally")).to_contain_text("1 today")
    [said] = desk.said()
    left, right = (str(position) for position in said.shown_order)
    assert (said.verdict, said.flags, said.ratings) == (RIGHT, {left: ["wrong"]}, {left: 2, right: 5})
    assert said.rationale == "Left blames us, b 0."
    with desk.sessions() as s:
        assert s.get_one(Completion, said.ideal_id).text == f"{before} And thank you."
    # The next one begins with nothing said, the first comes back with all of it.
    page.keyboard.press("r")
    expect(page.locator("#rationale")).to_have_value("")
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator('[data-act="why"][data-filled]')).to_be_visible()
    page.keyboard.press("r")
    expect(page.locator("#rationale")).to_have_value("Left blames us, b 0.")


def test_what_is_typed_survives_a_closed_tab_and_leaves_with_the_judgment(desk: Desk):
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    page.keyboard.press("r")
    page.keyboard.type("Half a reason")
    page.close(run_before_unload=True)
    page = desk.open(context)
    page.keyboard.press("r")
    expect(page.locator("#rationale")).to_have_value("Half a reason")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert desk.said()[0].rationale == "Half a reason"
    assert saved_draft(desk) == {}


def test_what_the_server_refuses_comes_back_with_all_that_was_typed(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = desk.open()
    task = shown(page)
    page.keyboard.press("r")
    page.keyboard.type("A reason")
    page.keyboard.press("Escape")
    with desk.sessions() as s:
        s.merge(desk.project).ask_rationale = False
        s.commit()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#note .notice")).to_contain_text("does not ask for reasons")
    assert shown(page) == task
    page.keyboard.press("r")
    expect(page.locator("#rationale")).to_have_value("A reason")
    page.locator("#rationale").fill("")
    page.keyboard.press("Escape")
    page.wait_for_timeout(170)
    page.keyboard.press("ArrowLeft")
    settle(page)
    assert [one.verdict for one in desk.said()] == [LEFT]


def test_a_text_that_is_too_long_is_not_cut_and_not_sent(desk: Desk):
    page = desk.open()
    page.keyboard.press("r")
    page.locator("#rationale").fill("x" * 4001)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#note")).to_contain_text("4001 characters; 4000 are taken")
    expect(page.locator("#rationale")).to_be_focused()
    assert len(page.locator("#rationale").input_value()) == 4001
    assert desk.said() == []


def test_a_judgment_is_changed_on_the_desk_and_leads_back_to_the_history(desk_of):
    desk = desk_of(3, ask_strength=True)
    desk.watch.expect_failed_requests = True
    page = desk.open()
    task = shown(page)
    page.keyboard.press("2")
    settle(page)
    page = desk.open(path=f"/judge?revise={task}")
    chosen = page.locator("#verdicts .chosen")
    expect(chosen).to_have_attribute("aria-label", "Left: Better")
    page.wait_for_timeout(170)
    page.keyboard.press("s")
    page.keyboard.press("7")
    page.wait_for_url("**/history")
    assert [(one.verdict, one.strength, one.revision) for one in desk.said()] == [(LEFT, 3, 1), (RIGHT, 3, 2)]


def test_single_keys_can_be_turned_off(desk: Desk):
    page = desk.open()
    page.keyboard.press("?")
    page.get_by_label("Letters and digits act at once").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    page.keyboard.press("b")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert [one.verdict for one in desk.said()] == [LEFT]


MEASURE = """
window.paints = [];
addEventListener("keydown", (event) => {
  requestAnimationFrame(() => {
    const channel = new MessageChannel(); // its message comes after the frame was painted
    channel.port1.onmessage = () => window.paints.push(performance.now() - event.timeStamp);
    channel.port2.postMessage(0);
  });
}, true);
"""


def test_the_next_text_is_painted_right_after_the_key(desk_of):
    desk = desk_of(40)
    context = desk.watch.context(desk.token())
    context.add_init_script(MEASURE)
    page = desk.open(context)
    ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    for _ in range(30):
        before = shown(page)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(
            "id => document.querySelector('[data-task]:not([hidden])')?.dataset.comparison !== id", arg=before
        )
        settle(page)
    times = sorted(page.evaluate("window.paints"))
    print(f"key to next text: median {times[15]:.0f} ms, p95 {times[28]:.0f} ms; ready after {ready:.0f} ms")
    assert len(desk.said()) == 30
    assert times[15] < 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_with_any_panel_open(desk_of, scheme):
    pair = desk_of(2, ask_strength=True, ask_ratings=True, guidelines="Prefer the one that helps.")
    page = pair.open(color_scheme=scheme, reduced_motion="reduce")
    found = {"pair": complaints(page)}
    for key in ("f", "r", "e", "s", "?", "g"):
        page.keyboard.press(key)
        found[key] = complaints(page)
        page.keyboard.press("Escape")
    rank = desk_of(2, mode=Mode.RANK, answers=9)
    page = rank.open(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 390, "height": 844})
    for key in ("9", "f"):
        page.keyboard.press(key)
        found[f"rank {key}"] = complaints(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert {where: what for where, what in found.items() if what} == {}
