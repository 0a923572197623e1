"""Judging in a real browser: by key, by mouse, twice, in two tabs, without a line, without scripts."""

import json

import pytest
from playwright.sync_api import Route, expect

from app.core.vocabulary import Verdict
from tests.browser import stage
from tests.browser.conftest import Desk, settle, shown

KEYS = {"ArrowLeft": Verdict.LEFT, "ArrowRight": Verdict.RIGHT, "0": Verdict.TIE, "b": Verdict.BOTH_BAD}
BUTTONS = {
    "Left is better": Verdict.LEFT,
    "Right is better": Verdict.RIGHT,
    "About the same": Verdict.TIE,
    "Both bad": Verdict.BOTH_BAD,
}


def test_every_verdict_has_a_key_and_the_count_grows(desk: Desk):
    page = desk.open()
    for number, key in enumerate(KEYS, 1):
        before = shown(page)
        page.keyboard.press(key)
        expect(page.locator("#tally")).to_contain_text(f"{number} today")
        assert shown(page) != before
        settle(page)
    assert [said.verdict for said in desk.said()] == list(KEYS.values())
    assert all(said.active_ms >= 150 and said.first_key_ms >= 150 for said in desk.said())


def test_every_verdict_has_a_button_that_shows_its_key(desk: Desk):
    page = desk.open()
    for number, name in enumerate(BUTTONS, 1):
        button = page.get_by_role("button", name=name)
        expect(button.locator("kbd")).to_be_visible()
        button.click()
        expect(page.locator("#tally")).to_contain_text(f"{number} today")
        settle(page)
    assert [said.verdict for said in desk.said()] == list(BUTTONS.values())


def test_the_next_pair_is_there_at_the_key_while_the_judgment_is_still_on_its_way(desk: Desk):
    page = desk.open()
    _first, second = [task.get_attribute("data-comparison") for task in page.locator("[data-task]").all()]
    waiting: list[Route] = []
    page.route("**/judgments", lambda route: waiting.append(route))
    page.keyboard.press("ArrowLeft")
    assert shown(page) == second
    expect(page.locator("#state")).to_have_text("saving")
    expect(page.locator("#announce")).to_contain_text("Left chosen. Next comparison. Prompt")
    page.wait_for_timeout(50)
    waiting[0].continue_()
    settle(page)
    assert page.locator("[data-task]").count() == 2
    assert desk.total() == 1


def test_undo_shows_the_pair_again_and_the_new_judgment_stands(desk: Desk):
    page = desk.open()
    first = shown(page)
    page.keyboard.press("ArrowLeft")
    settle(page)
    page.keyboard.press("u")
    page.wait_for_selector(f'[data-comparison="{first}"]:not([hidden])')
    assert desk.total() == 0
    settle(page)
    page.keyboard.press("ArrowRight")
    settle(page)
    assert desk.total() == 1
    assert [said.verdict for said in desk.said()] == [Verdict.LEFT, None, Verdict.RIGHT]
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(f'[data-comparison="{first}"]:not([hidden])')


def test_undo_with_nothing_to_take_back_says_so_in_the_page(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = desk.open()
    page.keyboard.press("u")
    expect(page.locator("#note .notice")).to_be_visible()


def test_skip_leaves_the_pair_to_somebody_else(desk: Desk):
    page = desk.open()
    first = shown(page)
    page.keyboard.press("s")
    settle(page)
    assert shown(page) != first
    page.get_by_role("button", name="Skip").click()
    settle(page)
    page.reload()
    assert desk.total() == 0
    assert first not in [task.get_attribute("data-comparison") for task in page.locator("[data-task]").all()]


def test_without_a_line_judgments_wait_in_the_browser_and_go_when_it_is_back(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    context.set_offline(True)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    page.wait_for_timeout(170)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#state")).to_have_text("offline, 2 waiting")
    assert desk.total() == 0
    context.set_offline(False)
    settle(page)
    assert [said.verdict for said in desk.said()] == [Verdict.LEFT, Verdict.RIGHT]
    expect(page.locator("[data-task]:not([hidden])")).to_have_count(1)


def test_a_waiting_judgment_survives_a_closed_tab(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    judged = shown(page)
    context.set_offline(True)
    page.keyboard.press("0")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    page.close()
    context.set_offline(False)
    page = desk.open(context)
    assert [said.verdict for said in desk.said()] == [Verdict.TIE]
    assert shown(page) != judged


def test_undo_without_a_line_takes_back_what_was_never_sent(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    first = shown(page)
    context.set_offline(True)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    page.keyboard.press("u")
    assert shown(page) == first
    page.wait_for_timeout(170)
    page.keyboard.press("ArrowRight")
    context.set_offline(False)
    settle(page)
    assert [said.verdict for said in desk.said()] == [Verdict.RIGHT]


def test_an_answer_lost_after_the_commit_is_asked_for_again_with_the_same_key(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = desk.open()
    lost = []

    def lose_the_first(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    page.route("**/judgments", lose_the_first)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#state")).to_contain_text("waiting for the line, 1 waiting")
    settle(page)
    assert lost == [200]
    assert len(desk.said()) == 1


def test_a_double_click_is_one_judgment(desk: Desk):
    page = desk.open()
    page.get_by_role("button", name="Left is better").dblclick()
    settle(page)
    page.wait_for_timeout(200)
    assert desk.total() == 1


def test_a_key_held_down_is_one_judgment(desk: Desk):
    page = desk.open()
    page.keyboard.down("ArrowLeft")
    for _ in range(5):
        page.keyboard.down("ArrowLeft")
        page.wait_for_timeout(60)
    page.keyboard.up("ArrowLeft")
    settle(page)
    assert desk.total() == 1


def test_two_tabs_share_their_pairs_and_never_judge_one_twice(desk: Desk):
    context = desk.watch.context(desk.token())
    one, two = desk.open(context), desk.open(context)
    first = shown(one)
    assert shown(two) == first
    one.keyboard.press("ArrowLeft")
    two.wait_for_function("id => !document.querySelector(`[data-comparison='${id}']`)", arg=first)
    settle(one)
    settle(two)
    two.keyboard.press("ArrowRight")
    settle(two)
    assert desk.total() == 2
    assert len({said.judgment_id for said in desk.said()}) == 2


def test_signed_out_in_between_the_judgment_waits_for_the_sign_in(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    context.clear_cookies()
    page.keyboard.press("ArrowLeft")
    link = page.get_by_role("link", name="signed out: sign in again, 1 waiting")
    expect(link).to_be_visible()
    context.add_cookies([{"name": "pairwright", "value": desk.token(), "url": desk.site}])
    page.reload()
    settle(page)
    assert desk.total() == 1


def test_an_empty_pool_says_so_and_the_next_pair_appears_by_itself(desk_of):
    desk = desk_of(1)
    page = desk.open()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="No pair is ready")).to_be_visible()
    expect(page.get_by_role("button", name="Left is better")).to_be_disabled()
    with desk.sessions() as s:
        stage.fill(s, desk.project, desk.policy, 0, stage.letters(4)[2:])
        s.commit()
    expect(page.locator("[data-task]:not([hidden])")).to_have_count(1, timeout=10000)
    settle(page)
    page.keyboard.press("ArrowRight")
    settle(page)
    assert desk.total() == 2


def test_without_scripts_the_form_does_it_all(desk: Desk):
    page = desk.open(java_script_enabled=False)
    first = shown(page)
    page.get_by_role("button", name="Left is better").click()
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert shown(page) != first
    page.get_by_role("button", name="Undo").click()
    assert shown(page) == first
    page.get_by_role("button", name="Skip").click()
    assert shown(page) != first
    page.get_by_role("link", name="Guidelines").click()
    expect(page.locator("dialog#guidelines")).to_be_visible()


def test_guidelines_and_keys_open_by_a_key_and_hold_the_others_back(desk_of):
    desk = desk_of(3, guidelines="Prefer the reply that names the order.")
    page = desk.open()
    page.keyboard.press("g")
    expect(page.get_by_role("dialog", name="Guidelines")).to_contain_text("names the order")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("undo the last judgment")
    page.keyboard.press("Escape")
    settle(page)
    assert desk.total() == 0


def test_a_project_may_do_without_ties_and_both_bad(desk_of):
    desk = desk_of(3, allow_tie=False, allow_both_bad=False)
    page = desk.open()
    expect(page.get_by_role("button", name="About the same")).to_have_count(0)
    page.keyboard.press("0")
    page.keyboard.press("b")
    settle(page)
    assert desk.total() == 0


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1366, 850), (1920, 1080)])
def test_both_answers_have_the_same_width_ink_and_paper_at_every_size(desk: Desk, width, height):
    page = desk.open(viewport={"width": width, "height": height}, color_scheme="dark")
    look = """side => {
        const node = document.querySelector(`[data-task]:not([hidden]) [data-answer="${side}"]`);
        const {color, backgroundColor, fontSize, lineHeight, fontFamily} = getComputedStyle(node);
        return [node.clientWidth, color, backgroundColor, fontSize, lineHeight, fontFamily];
    }"""
    left, right = page.evaluate(look, "left"), page.evaluate(look, "right")
    assert left == right
    assert left[3] == "18px"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 21, 19)"


def test_a_long_answer_is_whole_and_scrolls_by_the_usual_keys(desk_of):
    desk = desk_of(0)
    with desk.sessions() as s:
        stage.fill(s, desk.project, desk.policy, 0, [("A long story, please.", "Once upon a time. " * 400, "No.")])
        s.commit()
    page = desk.open(viewport={"width": 1366, "height": 700})
    longest = page.evaluate("Math.max(...[...document.querySelectorAll('[data-answer]')].map(n => n.clientHeight))")
    assert page.evaluate("document.querySelector('.spread').clientHeight") > longest > 1500
    assert page.evaluate("document.getElementById('verdicts').getBoundingClientRect().bottom") <= 700
    page.keyboard.press("PageDown")
    page.wait_for_function("() => document.getElementById('main').scrollTop > 200")


def test_the_first_load_is_small_and_needs_no_script_to_be_read(desk: Desk):
    context = desk.watch.context(desk.token())
    page = desk.watch.page(context)
    sizes: list[int] = []
    page.on(
        "requestfinished",
        lambda request: sizes.append(sum(request.sizes()[k] for k in ("responseBodySize", "responseHeadersSize"))),
    )
    page.goto(desk.site + desk.base + "/judge", wait_until="networkidle")
    assert 3 <= len(sizes) <= 12
    assert sum(sizes) < 50_000


def test_the_browser_keeps_no_text_of_a_judgment_in_its_storage(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = desk.open(context)
    context.set_offline(True)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    stored = page.evaluate("JSON.stringify(Object.values(localStorage))")
    assert "order" in stored
    assert "Kind regards" not in stored
    assert set(json.loads(json.loads(stored)[0])[0]) == {"key", "to", "body"}
    context.set_offline(False)
    settle(page)
