"""The other pages in a real browser: from the console's link inward, live numbers, errors in place."""

import json
import uuid

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import delete

from app.core.vocabulary import Role, RunKind
from app.store import accounts, runs
from app.store.models import Membership, Owner
from tests.browser import stage
from tests.browser.conftest import Desk

PASSWORD = "a quiet green page"


@pytest.fixture
def admin(desk: Desk) -> Page:
    """The loop's page, as an admin."""
    return desk.open(desk.watch.context(desk.token(desk.member(Role.ADMIN))), "")


def test_from_the_consoles_link_to_the_loop(desk: Desk):
    desk.watch.expect_failed_requests = True
    with desk.sessions() as s:
        s.execute(delete(Owner))
        link = accounts.issue_setup_token(s)
        s.commit()
    page = desk.watch.page(desk.watch.context())
    page.goto(f"{desk.site}/setup/{link}")
    name = f"ada-{uuid.uuid4().hex[:8]}"
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill("short")
    page.get_by_role("button", name="Make the account and begin").click()
    expect(page.locator("#slot .notice")).to_contain_text("at least 10 characters")
    assert page.get_by_label("Name").input_value() == name
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account and begin").click()
    page.wait_for_url(lambda url: "/setup/" not in url)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#slot .notice")).to_contain_text("do not belong together")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "sign-in" not in url)
    with desk.sessions() as s:
        s.execute(delete(Owner))
        s.commit()


def test_an_invitation_is_made_copied_and_accepted(desk: Desk, admin: Page):
    admin.get_by_role("link", name="People").click()
    admin.get_by_label("Role").select_option("researcher")
    admin.get_by_role("button", name="Make the link").click()
    link = admin.get_by_label("Invitation link").input_value()
    assert link.startswith(f"{desk.site}/join/")
    guest = desk.watch.page(desk.watch.context())
    guest.goto(link)
    expect(guest.get_by_role("heading", name="Join Support replies")).to_be_visible()
    guest.get_by_label("Name").fill(f"barbara-{uuid.uuid4().hex[:8]}")
    guest.get_by_label("Password").fill(PASSWORD)
    guest.get_by_role("button", name="Make the account and join").click()
    expect(guest.get_by_role("heading", name="The loop")).to_be_visible()
    expect(guest.get_by_role("link", name="Judge")).to_have_count(0)


def test_somebody_is_deactivated_only_after_a_question(desk: Desk, admin: Page):
    admin.get_by_role("link", name="People").click()
    admin.get_by_role("link", name=desk.person.username).click()
    answers = ["dismiss", "accept"]
    admin.on("dialog", lambda dialog: getattr(dialog, answers.pop(0))())
    admin.get_by_role("button", name="Deactivate").click()
    admin.wait_for_timeout(200)
    with desk.sessions() as s:
        assert accounts.membership(s, desk.project.id, desk.person.id) is not None
    admin.get_by_role("button", name="Deactivate").click()
    expect(admin.get_by_text("This project was closed to them")).to_be_visible()
    with desk.sessions() as s:
        row = s.query(Membership).filter_by(project_id=desk.project.id, account_id=desk.person.id).one()
        assert row.deactivated_at is not None


def test_a_run_on_too_few_judgments_is_refused_where_the_button_is(desk: Desk, admin: Page):
    desk.watch.expect_failed_requests = True
    admin.get_by_role("link", name="Runs", exact=True).click()
    admin.get_by_role("button", name="Train both").click()
    expect(admin.locator("#slot .notice")).to_contain_text("cannot teach a reward model")
    admin.get_by_role("link", name="Reward model").click()
    expect(admin.get_by_role("heading", name="Start a reward model")).to_be_visible()
    admin.get_by_text("more settings").click()
    admin.get_by_label("Gradient clip").fill("-1")
    admin.get_by_role("button", name="Start the reward model").click()
    expect(admin.locator("#slot .notice")).to_contain_text("Gradient clip")


def test_the_loop_shows_new_numbers_by_itself(desk: Desk, admin: Page):
    expect(admin.locator("#loop .figure").nth(1)).to_have_text("6")
    with desk.sessions() as s:
        stage.fill(s, desk.project, desk.policy, 0, stage.letters(9)[6:])
        s.commit()
    expect(admin.locator("#loop .figure").nth(1)).to_have_text("9", timeout=8000)


def test_a_run_is_watched_live_cancelled_and_resumed(desk_of):
    desk = desk_of(0)
    admin = desk.member(Role.ADMIN)
    with desk.sessions() as s:
        reward = stage.register(s, desk.project, stage.CheckpointKind.REWARD_MODEL, None, desk.policy, {})
        stage.fill(s, desk.project, desk.policy, 3)
        run = runs.enqueue(s, desk.project.id, RunKind.PPO, admin.id, reward_model_id=reward.id)
        taken = runs.claim_run(s, "test")
        assert taken is not None
        runs.append_metrics(s, run.id, taken.attempt, [stage.ppo_row(1), stage.ppo_row(2)])
        s.commit()
    page = desk.open(desk.watch.context(desk.token(admin)), f"/runs/{run.id}")
    expect(page.locator(".curve canvas").first).to_be_visible()
    expect(page.locator(".curve:not([hidden])")).to_have_count(10)
    before = page.locator(".curve output").first.inner_text()
    with desk.sessions() as s:
        runs.append_metrics(s, run.id, taken.attempt, [stage.ppo_row(i) for i in range(3, 9)])
        progress = stage.Progress(step=8, total=24, phase="learning", seconds_left=64, time=0)
        runs.heartbeat(s, run.id, taken.attempt, progress)
        s.commit()
    expect(page.locator("#live")).to_contain_text("step 8 of 24, about 64 s left", timeout=6000)
    expect(page.locator(".curve output").first).not_to_have_text(before)
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.locator("#live")).to_contain_text("Stopping at the next checkpoint")
    with desk.sessions() as s:
        runs.finish(s, run.id, taken.attempt, stage.RunStatus.CANCELLED, {})
        s.commit()
    resume = page.get_by_role("button", name="Resume the run")
    expect(resume).to_be_visible(timeout=8000)
    resume.click()
    expect(page.locator("#live")).to_contain_text("Waiting for the worker")


def test_a_file_is_imported_and_a_malformed_one_named_by_line(desk: Desk, admin: Page):
    desk.watch.expect_failed_requests = True
    admin.get_by_role("link", name="Data").click()
    good = "".join(json.dumps({"prompt": f"What now, {i}?"}) + "\n" for i in range(3))
    admin.get_by_label("File").set_input_files(
        {"name": "p.jsonl", "mimeType": "application/json", "buffer": good.encode()}
    )
    admin.get_by_role("button", name="Import").click()
    expect(admin.locator("#report")).to_contain_text("3 added of 3 in p.jsonl")
    bad = good + "{not json\n"
    admin.get_by_label("File").set_input_files(
        {"name": "q.jsonl", "mimeType": "application/json", "buffer": bad.encode()}
    )
    admin.get_by_role("button", name="Import").click()
    expect(admin.locator("#report")).to_contain_text("line 4", ignore_case=True)


@pytest.mark.parametrize("path", ["", "/runs", "/policies", "/data", "/people"])
def test_no_page_scrolls_sideways_on_a_phone(desk: Desk, path):
    context = desk.watch.context(desk.token(desk.member(Role.ADMIN)), viewport={"width": 390, "height": 844})
    page = desk.open(context, path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_back_after_signing_out_shows_nothing(desk: Desk, admin: Page):
    admin.goto(f"{desk.site}{desk.base}/data")
    admin.get_by_role("button", name="Sign out").click()
    admin.wait_for_url("**/sign-in")
    admin.go_back()
    expect(admin.get_by_role("heading", name="Sign in")).to_be_visible()
