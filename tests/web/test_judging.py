"""The judge page and the four things a person does there, as HTTP."""

import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from app.core.vocabulary import Mode, Verdict
from app.store import claims, judgments, projects
from app.store.models import Judgment, JudgmentRevision, Membership, Project
from tests.web.conftest import FETCHING, Cast, House, judgment
from tests.web.reading import tasks_of, words_of


@pytest.fixture
def base(cast: Cast) -> str:
    """The project's address."""
    return f"/p/{cast.project.slug}"


def tally(house: House, cast: Cast, who: str = "annotator") -> int:
    with house.store() as s:
        return judgments.tally(s, cast.project.id, cast.people[who].id).total


def test_the_page_holds_the_pair_to_judge_and_the_hidden_next_one(annotator, base):
    page = annotator.get(f"{base}/judge").text
    first, second = tasks_of(page)
    assert first["comparison"] != second["comparison"]
    assert page.count("data-task data-comparison") == 2
    assert page.count('tabindex="-1" hidden') == 1
    assert page.count('data-answer="left"') == page.count('data-answer="right"') == 2


def test_looking_again_shows_the_same_leased_pairs(annotator, base):
    assert tasks_of(annotator.get(f"{base}/judge").text) == tasks_of(annotator.get(f"{base}/judge").text)


def test_the_answer_to_a_judgment_is_the_comparison_after_the_next(annotator, base, house, cast):
    first, second = tasks_of(annotator.get(f"{base}/judge").text)
    answer = annotator.post(f"{base}/judgments", data=judgment(first, held=second["comparison"]), headers=FETCHING)
    assert answer.status_code == 200
    [third] = tasks_of(answer.text)
    assert third["comparison"] not in (first["comparison"], second["comparison"])
    assert 'data-today="1"' in answer.text
    assert "<html" not in answer.text
    assert tally(house, cast) == 1


@pytest.mark.parametrize("verdict", list(Verdict))
def test_each_verdict_is_stored_as_the_person_saw_it(annotator, base, house, verdict):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    annotator.post(f"{base}/judgments", data=judgment(task, verdict=verdict.value, active_ms="4200"), headers=FETCHING)
    with house.store() as s:
        said = s.scalars(select(JudgmentRevision)).one()
    assert said.verdict is verdict
    assert said.shown_order == [int(position) for position in task["order"].split(",")]
    assert said.active_ms == 4200
    better = said.shown_order[0] if verdict is Verdict.LEFT else said.shown_order[1]
    assert said.tiers[0] == ([better] if verdict in (Verdict.LEFT, Verdict.RIGHT) else [0, 1])


def test_sending_a_judgment_twice_is_judging_once(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    form = judgment(task)
    for _ in range(3):
        assert annotator.post(f"{base}/judgments", data=form, headers=FETCHING).status_code == 200
    assert tally(house, cast) == 1
    other = annotator.post(f"{base}/judgments", data=form | {"verdict": "right"}, headers=FETCHING)
    assert other.status_code == 409
    assert 'id="notice"' in other.text
    with house.store() as s:
        assert len(s.scalars(select(Judgment)).all()) == len(s.scalars(select(JudgmentRevision)).all()) == 1


def test_without_scripts_the_form_leads_back_to_the_page(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    form = {"comparison_id": task["comparison"], "order": task["order"], "key": str(uuid.uuid4())}
    for path, more in [("judgments", {"verdict": "tie"}), ("undo", {}), ("skip", {})]:
        answer = annotator.post(f"{base}/{path}", data=form | more)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{base}/judge"), path
    assert tally(house, cast) == 0
    assert task not in tasks_of(annotator.get(f"{base}/judge").text)


def test_undo_brings_the_pair_back_to_the_same_person(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    answer = annotator.post(f"{base}/undo", headers=FETCHING)
    assert tasks_of(answer.text) == [task]
    assert "data-again" in answer.text
    assert tally(house, cast) == 0
    nothing = annotator.post(f"{base}/undo", headers=FETCHING)
    assert nothing.status_code == 409


def test_a_skipped_pair_goes_to_somebody_else(annotator, admin, base, cast, house):
    for _ in range(6):
        for task in tasks_of(annotator.get(f"{base}/judge").text):
            annotator.post(f"{base}/skip", data={"comparison_id": task["comparison"]}, headers=FETCHING)
    assert tasks_of(annotator.get(f"{base}/judge").text) == []
    assert len(tasks_of(admin.get(f"{base}/judge").text)) == 2


def test_an_empty_pool_says_so_and_keeps_looking(annotator, base, house, cast):
    with house.store() as s:
        assert len(claims.claim(s, cast.project.id, cast.people["admin"].id, count=6)) == 6
    page = annotator.get(f"{base}/judge").text
    assert tasks_of(page) == []
    assert "No pair is ready" in words_of(page)
    assert annotator.post(f"{base}/next", headers=FETCHING).status_code == 200


def test_only_admins_are_told_who_wrote_a_pair(annotator, admin, base):
    assert "Written by" not in annotator.get(f"{base}/judge").text
    assert "Written by v1" in admin.get(f"{base}/judge").text


def test_nothing_in_the_page_prefers_a_side_or_names_a_source(annotator, base, cast):
    page = annotator.get(f"{base}/judge").text
    assert str(cast.policy.id) not in page
    assert "v1" not in words_of(page)
    for word in ("checkpoint", "seed", "temperature", "logprob"):
        assert word not in page


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "middle"},
        {"order": "0"},
        {"order": "left,right"},
        {"key": "not-a-key"},
        {"comparison_id": "not-an-id"},
        {"active_ms": "-1"},
        {"active_ms": "9" * 30},
        {"strength": "9"},
        {"account_id": str(uuid.uuid4())},
        {"counted": "true"},
    ],
)
def test_a_malformed_judgment_is_refused_in_words_and_nothing_is_stored(annotator, base, house, cast, wrong):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    answer = annotator.post(f"{base}/judgments", data=judgment(task) | wrong, headers=FETCHING)
    assert answer.status_code == 422
    assert answer.text.startswith('<div id="notice"')
    assert tally(house, cast) == 0


def test_a_stale_order_is_refused(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    answer = annotator.post(f"{base}/judgments", data=judgment(task, order="0,0"), headers=FETCHING)
    assert answer.status_code in (409, 422)
    assert tally(house, cast) == 0


def test_the_guidelines_are_read_before_work_is_handed_out(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    with house.store() as s:
        projects.revise_guidelines(s, cast.project.id, "Prefer the shorter one.")
    sent = annotator.get(f"{base}/judge")
    assert (sent.status_code, sent.headers["location"]) == (303, f"{base}/guidelines")
    answer = annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    assert (answer.status_code, tasks_of(answer.text)) == (200, [])
    assert "The guidelines have changed" in words_of(answer.text)
    assert tally(house, cast) == 1


def test_somebody_paused_is_told_why_and_what_they_hold_is_still_taken(annotator, base, house, cast):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    with house.store() as s:
        s.get_one(Membership, (cast.project.id, cast.people["annotator"].id)).paused_at = datetime.now(UTC)
    assert "An admin has paused your judging" in words_of(annotator.get(f"{base}/judge").text)
    answer = annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    assert (answer.status_code, tasks_of(answer.text)) == (200, [])
    assert tally(house, cast) == 1


def test_a_cap_hands_out_what_is_left_of_it(annotator, base, house, cast):
    with house.store() as s:
        s.get_one(Project, cast.project.id).cap = 1
    [task] = tasks_of(annotator.get(f"{base}/judge").text)
    answer = annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    assert tasks_of(answer.text) == []
    assert "You have given all that was asked" in words_of(annotator.get(f"{base}/judge").text)


@pytest.mark.parametrize(("mode", "where"), [(Mode.CHAT, "chat"), (Mode.DEMONSTRATE, "write")])
def test_other_modes_have_pages_of_their_own(annotator, base, house, cast, mode, where):
    with house.store() as s:
        s.get_one(Project, cast.project.id).mode = mode
    assert annotator.get(f"{base}/judge").headers["location"] == f"{base}/{where}"


def test_a_judgment_is_looked_at_again_and_changed(annotator, admin, base, house):
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    annotator.post(f"{base}/judgments", data=judgment(task, rationale="Because."), headers=FETCHING)
    again = f"{base}/judge?revise={task['comparison']}"
    page = annotator.get(again).text
    assert tasks_of(page) == [task]
    assert "Because." in page
    assert admin.get(again).status_code == 404
    sent = annotator.post(f"{base}/judgments", data=judgment(task, verdict="right", back="history"))
    assert (sent.status_code, sent.headers["location"]) == (303, f"{base}/history")
    with house.store() as s:
        assert [one.revision for one in s.scalars(select(JudgmentRevision))] == [1, 2]
