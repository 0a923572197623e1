"""Writing in a real browser: by key, with drafts, without a line, without scripts; and what axe says of the pages."""

import json
import uuid

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select, update

from app.core.vocabulary import Mode, Origin, Role, SkipReason
from app.store import drafts, guidelines, projects, writing
from app.store.models import Completion, Demonstration, Project, Writing
from tests.browser.conftest import Desk

RULES = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}

# What of a page stands out to the right at 320 px; the bar at the top is another test's.
BEYOND = """() => [...document.querySelectorAll("main, main *, .bar, .bar *")]
    .filter(node => node.getBoundingClientRect().right > 321 && !node.closest(".scroll"))
    .map(node => node.outerHTML.slice(0, 150))"""


@pytest.fixture
def desk(desk_of) -> Desk:
    """A project with four prompts that ask for an ideal answer, each with two answers of a policy."""
    made = desk_of(4, guidelines="Name the order.")
    with made.sessions() as s:
        s.execute(update(Project).where(Project.id == made.project.id).values(mode=Mode.DEMONSTRATE))
        guidelines.mark_read(s, made.project.id, made.person.id, 1)
        s.commit()
    return made


def write(desk: Desk, context=None, **settings) -> Page:
    """The writing page, ready to be typed in."""
    page = desk.open(context, "/write", **settings)
    if settings.get("java_script_enabled", True):
        expect(page.locator("#length")).to_contain_text("word")
    return page


def stored(desk: Desk) -> list[str]:
    """All that was written, in order."""
    with desk.sessions() as s:
        query = select(Completion.text).join(Demonstration, Demonstration.completion_id == Completion.id)
        return list(s.scalars(query.where(Demonstration.project_id == desk.project.id).order_by(Demonstration.id)))


def prompt_of(page: Page) -> str:
    return page.locator("#writing").get_attribute("data-prompt") or ""


def test_typing_is_never_hijacked_and_ctrl_enter_submits(desk: Desk):
    page = write(desk)
    first = prompt_of(page)
    page.locator("#answer").focus()
    page.keyboard.type("suggest? he uses s, u, g, h and ?")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator("#length")).to_contain_text("8 words")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert prompt_of(page) != first
    expect(page.locator("#announce")).to_contain_text("Saved.")
    expect(page.locator("#answer")).to_have_value("")
    assert stored(desk) == ["suggest? he uses s, u, g, h and ?"]


def test_escape_leaves_the_text_and_the_keys_work_there(desk: Desk):
    page = write(desk)
    page.locator("#answer").fill("Half a sen")
    page.keyboard.press("Escape")
    for key, name in (("g", "Guidelines"), ("?", "Keys"), ("s", "Leave this prompt to somebody else")):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_be_focused()
    expect(page.locator("#answer")).to_have_value("Half a sen")
    page.keyboard.press("Escape")
    page.keyboard.press("h")
    expect(page.get_by_role("heading", name="History")).to_be_visible()


def test_a_draft_is_saved_while_typing_and_comes_back_on_another_device(desk: Desk):
    page = write(desk)
    first = prompt_of(page)
    page.locator("#answer").fill("Begun on one device")
    expect(page.locator("#state")).to_have_text("draft saved")
    other = write(desk)
    assert prompt_of(other) == first
    expect(other.locator("#answer")).to_have_value("Begun on one device")
    other.locator("#answer").fill("Begun on one device, ended on another")
    other.reload()
    expect(other.locator("#answer")).to_have_value("Begun on one device, ended on another")
    other.keyboard.press("Control+Enter")
    expect(other.locator("#tally")).to_contain_text("1 today")
    with desk.sessions() as s:
        assert drafts.load(s, desk.person.id, [uuid.UUID(first)]) == {}


def test_without_a_line_the_text_waits_in_the_browser_and_goes_when_it_is_back(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = write(desk, context)
    context.set_offline(True)
    page.locator("#answer").fill("Written on a train")
    expect(page.locator("#state")).to_have_text("offline, draft kept here")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    expect(page.locator("#note")).to_contain_text("goes by itself")
    page.close()
    context.set_offline(False)
    page = desk.open(context, "/write")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert stored(desk) == ["Written on a train"]
    expect(page.locator("#answer")).to_have_value("")
    assert json.loads(page.evaluate("JSON.stringify(Object.values(localStorage))")) == ["[]"]


def test_undo_without_a_line_gives_the_text_back_and_a_draft_typed_there_survives(desk: Desk):
    desk.watch.expect_failed_requests = True
    context = desk.watch.context(desk.token())
    page = write(desk, context)
    context.set_offline(True)
    page.locator("#answer").fill("Too hasty")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#state")).to_have_text("offline, 1 waiting")
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator("#answer")).to_be_editable()
    page.locator("#answer").fill("Too hasty, mended")
    expect(page.locator("#state")).to_have_text("offline, draft kept here")
    page.close()
    context.set_offline(False)
    page = write(desk, context)
    expect(page.locator("#answer")).to_have_value("Too hasty, mended")
    assert stored(desk) == []


def test_an_answer_lost_after_the_commit_and_a_double_click_are_one_demonstration(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = write(desk)
    lost: list[int] = []

    def lose_the_first(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    page.route("**/write", lose_the_first)
    page.locator("#answer").fill("Only once")
    page.get_by_role("button", name="Submit").dblclick()
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert (lost, stored(desk)) == ([200], ["Only once"])


def test_bad_input_is_said_in_the_page_and_nothing_is_lost(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = write(desk)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no text yet")
    page.locator("#answer").fill("y" * 20_002)
    expect(page.locator("#length")).to_contain_text("2 characters too many")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("Shorten it by 2")
    page.locator("#answer").evaluate("node => { node.value = 'a\\u0000b'; }")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be stored")
    expect(page.locator("#answer")).to_be_editable()
    page.locator("#answer").fill("Fine now")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert stored(desk) == ["Fine now"]


def test_the_better_answer_shows_on_a_key_only_and_can_be_started_from_and_put_away(desk: Desk):
    page = write(desk)
    better = page.locator("[data-better]")
    expect(better).to_be_hidden()
    page.locator("#answer").fill("My own words")
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    expect(better).to_be_visible()
    page.keyboard.press("e")
    text = page.locator("#better-source").input_value()
    expect(page.locator("#answer")).to_have_value(text)
    page.get_by_role("link", name="Put my text back").click()
    expect(page.locator("#answer")).to_have_value("My own words")
    page.get_by_role("link", name="Edit this one").click()
    page.keyboard.type("First: ")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#tally")).to_contain_text("1 today")
    assert stored(desk) == [f"First: {text}"]
    with desk.sessions() as s:
        query = select(Completion).where(Completion.project_id == desk.project.id, Completion.origin == Origin.EDITED)
        assert s.scalars(query).one().edited_from_id is not None


def test_undo_opens_the_last_one_again_and_a_skip_keeps_its_reason(desk: Desk):
    page = write(desk)
    page.locator("#answer").fill("First thoughts")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#tally")).to_contain_text("1 today")
    following = prompt_of(page)
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    expect(page.locator("#answer")).to_have_value("First thoughts")
    page.locator("#answer").fill("Second thoughts")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("id => document.getElementById('writing').dataset.prompt === id", arg=following)
    assert "revise" not in page.url
    assert stored(desk) == ["First thoughts", "Second thoughts"]
    page.get_by_role("link", name="s Skip").click()
    page.get_by_label("It is not my field").check()
    page.get_by_role("button", name="Skip it").click()
    page.wait_for_function("id => document.getElementById('writing').dataset.prompt !== id", arg=following)
    with desk.sessions() as s:
        met = s.get_one(Writing, (uuid.UUID(following), desk.person.id))
        assert (met.state, met.skip_reason) == ("skipped", SkipReason.NOT_MY_FIELD)


def test_without_scripts_the_forms_do_it_all(desk: Desk):
    page = write(desk, java_script_enabled=False)
    page.locator("#answer").fill("By hand")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#tally")).to_contain_text("1 today")
    page.get_by_text("Start from the better answer").click()
    page.get_by_role("link", name="Edit this one").click()
    expect(page.locator("#answer")).not_to_have_value("")
    page.get_by_role("link", name="s Skip").click()
    page.get_by_role("button", name="Skip it").click()
    page.get_by_role("link", name="Undo").click()
    expect(page.locator("#answer")).to_have_value("By hand")


def test_changed_guidelines_are_read_before_the_next_prompt_and_lead_back(desk: Desk):
    admin = desk.member(Role.ADMIN)
    page = write(desk)
    edit = desk.open(desk.watch.context(desk.token(admin)), "/guidelines/edit")
    edit.get_by_label("Text").fill("Name the order.\n\nBe brief.")
    edit.get_by_role("button", name="Preview").click()
    expect(edit.locator("#preview")).to_contain_text("Be brief.")
    edit.get_by_role("button", name="Save as a new version").click()
    expect(edit.get_by_text("Version 2, just now")).to_be_visible()
    page.locator("#answer").fill("Before the change")
    page.keyboard.press("Control+Enter")
    expect(page.locator("ins")).to_contain_text("Be brief.")
    page.get_by_role("button", name="I have read them").click()
    expect(page.locator("#answer")).to_be_visible()
    assert page.url.endswith("/write")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(desk: Desk, scheme: str):
    with desk.sessions() as s:
        task = writing.claim(s, desk.project.id, desk.person.id)
        assert task is not None
        for words in ("First.", "Second."):
            sent = writing.Written(task.prompt_id, uuid.uuid4(), words)
            made = writing.submit(s, desk.project.id, desk.person.id, sent)
        projects.revise_guidelines(s, desk.project.id, "Name the order and the item.")
        s.commit()
    for who, paths in (
        (desk.person, ["/guidelines", "/history", f"/history/{made.demonstration_id}", "/write"]),
        (desk.member(Role.ADMIN), ["/guidelines/edit", "/guidelines/2"]),
    ):
        context = desk.watch.context(
            desk.token(who), color_scheme=scheme, reduced_motion="reduce", viewport={"width": 390, "height": 844}
        )
        for path in paths:
            if path == "/write":
                with desk.sessions() as s:
                    guidelines.mark_read(s, desk.project.id, desk.person.id, 2)
                    s.commit()
            page = desk.open(context, path)
            if path == "/write":
                page.locator("#better summary").click()
                assert "/write" in page.url
            found = Axe().run(page, options=RULES).response["violations"]
            nodes = {hit["id"]: [node["html"][:200] for node in hit["nodes"]] for hit in found}
            assert nodes == {}, f"{path}: {nodes}"
            page.set_viewport_size({"width": 320, "height": 640})
            beyond = page.evaluate(BEYOND)
            assert beyond == [], f"{path}: {beyond}"
            page.set_viewport_size({"width": 390, "height": 844})
