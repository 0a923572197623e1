"""Qualifying, pausing and configuring in a real browser, and what axe says of the pages."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from app.core.vocabulary import Role
from app.store import gold, skills
from app.store.models import Membership, Project
from tests.browser import stage
from tests.browser.conftest import Desk, settle, shown

WORDS = "It has the order number in front of it and says what happens next; the other one sends the customer away."


def furnish(desk: Desk, qualify_on: int) -> None:
    """Gold for the round, and a round."""
    with desk.sessions() as s:
        project = s.get_one(Project, desk.project.id)
        for number, (prompt, good, poor) in enumerate(stage.letters(20)[-qualify_on:]):
            answers = [good, poor] if number % 2 else [poor, good]
            gold.write_gold(s, project.id, f"{prompt} Please help.", answers, answers.index(good), WORDS, True, None)
        project.qualify_on, project.qualify_at = qualify_on, 0.5
        s.commit()


def judge(page: Page, right: bool) -> None:
    """Choose the reply that names the order, or the other one."""
    left = page.locator(f'[data-comparison="{shown(page)}"] [data-answer="left"]').inner_text()
    good = "ArrowLeft" if "front of me" in left else "ArrowRight"
    poor = "ArrowRight" if good == "ArrowLeft" else "ArrowLeft"
    page.keyboard.press(good if right else poor)
    settle(page)


def clean(page: Page) -> None:
    """axe finds nothing, in light and in dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
        told = [(one["id"], [node["html"][:160] for node in one["nodes"]]) for one in found.response["violations"]]
        assert told == [], scheme
    page.emulate_media(color_scheme="light")


def test_a_newcomer_learns_after_each_comparison_and_passes(desk: Desk):
    furnish(desk, 3)
    page = desk.open()
    judge(page, right=True)
    lesson = page.locator("#lesson")
    expect(lesson).to_contain_text("Right.")
    expect(lesson).to_contain_text(WORDS)
    expect(lesson).to_contain_text("1 of 3")
    lesson.get_by_text("Look at it again").click()
    expect(lesson.get_by_role("heading", name="the better one")).to_have_count(1)
    clean(page)
    page.wait_for_timeout(200)
    judge(page, right=False)
    expect(lesson).to_contain_text("Not the answer that was expected.")
    judge(page, right=True)
    expect(lesson).to_contain_text("You have passed the qualification round with 2 of 3 right")
    # The work begins in the same page, and says no more what is right.
    page.wait_for_selector("[data-task]:not([hidden])")
    page.wait_for_timeout(200)
    page.keyboard.press("ArrowLeft")
    expect(lesson).to_be_hidden()
    settle(page)
    expect(lesson).to_be_hidden()
    with desk.sessions() as s:
        assert s.get_one(Membership, (desk.project.id, desk.person.id)).qualified_at is not None


def test_who_does_not_pass_reads_it_kindly_and_can_be_let_in(desk: Desk):
    furnish(desk, 2)
    page = desk.open()
    judge(page, right=False)
    judge(page, right=False)
    expect(page.locator("#lesson")).to_contain_text("0 of 2 were right, and that is not yet enough")
    expect(page.locator("[data-task]:not([hidden])")).to_have_count(0)
    page.get_by_role("link", name="Your numbers").click()
    expect(page.get_by_text("The qualification round is not passed yet.")).to_be_visible()
    clean(page)
    admin = desk.open(desk.watch.context(desk.token(desk.member(Role.ADMIN))), path="/quality")
    admin.get_by_role("button", name=f"Qualify: {desk.person.username}").click()
    expect(admin.get_by_role("button", name=f"Qualify: {desk.person.username}")).to_have_count(0)
    page.goto(desk.site + desk.base + "/judge")
    expect(page.locator("[data-task]:not([hidden])")).to_have_count(1)


def test_an_admin_sees_everybody_pauses_one_and_lets_them_go_on(desk: Desk):
    with desk.sessions() as s:
        place = stage.Stage(desk.project, desk.policy, desk.person, [], desk.person)
        friend = stage.person(s, "grace hopper", desk.project)
        project = s.get_one(Project, desk.project.id)
        for account, right in ((desk.person, 0.9), (friend, 0.6)):
            stage.judge_all(s, place, account, right, 6)
        project.gold_rate = 0.05
        fitted = [
            skills.Fitted(str(desk.person.id), "one-coin Dawid-Skene", 0.91, 0.8, 0.97, 60),
            skills.Fitted(str(friend.id), "one-coin Dawid-Skene", 0.62, 0.5, 0.73, 60),
        ]
        skills.store(s, project.id, fitted, project.created_at)
        s.commit()
    context = desk.watch.context(desk.token(desk.member(Role.ADMIN)))
    page = desk.open(context, path="/quality")
    # Who needs a look first stands first.
    expect(page.locator("tbody tr").first).to_contain_text("grace hopper")
    clean(page)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Pause: grace hopper").click()
    expect(page.locator("tbody tr", has_text="grace hopper")).to_contain_text("paused")
    page.get_by_role("button", name="Leave out: grace hopper").click()
    expect(page.locator("tbody tr", has_text="grace hopper")).to_contain_text("left out")
    page.get_by_role("button", name="Resume: grace hopper").click()
    expect(page.get_by_role("button", name="Pause: grace hopper")).to_be_visible()
    page.get_by_role("link", name="Name").click()
    expect(page.locator("th[aria-sort]")).to_have_text("Name")
    page.get_by_role("link", name="Gold", exact=True).click()
    page.get_by_label("Prompt").fill("Where is order 4312?")
    page.get_by_label("Answer 1", exact=True).fill("It leaves on Tuesday.")
    page.get_by_label("Answer 2", exact=True).fill("Who knows.")
    page.locator("#explanation-write").fill("It answers.")
    clean(page)
    page.get_by_role("button", name="Make it gold").last.click()
    expect(page.get_by_text("nobody has met it")).to_be_visible()
    clean(page)


def test_settings_are_saved_or_refused_in_the_page(desk: Desk):
    desk.watch.expect_failed_requests = True
    page = desk.open(desk.watch.context(desk.token(desk.member(Role.ADMIN))), path="/settings")
    clean(page)
    page.get_by_label("Qualification round").fill("5")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.locator("#said .notice")).to_contain_text("there are only 0 gold comparisons")
    page.get_by_label("Qualification round").fill("0")
    page.get_by_label("Strength").check()
    page.get_by_label("Ties").uncheck()
    page.get_by_label("Votes wanted").fill("none")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.locator("#said .notice")).to_contain_text("Votes wanted")
    page.get_by_label("Votes wanted").fill("2")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.locator("#said .notice")).to_contain_text("Saved.")
    with desk.sessions() as s:
        project = s.get_one(Project, desk.project.id)
        assert (project.ask_strength, project.allow_tie, project.votes_wanted) == (True, False, 2)
    page.reload()
    expect(page.get_by_label("Ties")).not_to_be_checked()
    expect(page.get_by_label("Strength")).to_be_checked()
