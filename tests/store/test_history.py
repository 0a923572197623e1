"""A person's own history."""

import uuid

import pytest
from sqlalchemy import text, update

from app.core.errors import NotFound
from app.core.vocabulary import DrawReason, Verdict
from app.store import claims, history, judgments, writing
from app.store.models import Assignment, Comparison, Judgment, new_id


def judge(make, project, policy, person, verdict=Verdict.LEFT):
    make.pair(project, policy)
    return make.judged(project, person, verdict)


def test_judgments_and_demonstrations_stand_together_newest_first_and_pages_meet(
    session, make, project, policy, person
):
    ids = []
    for i in range(5):
        ids.append(judge(make, project, policy, person).judgment_id)
        if i % 2:
            make.prompt(project)
            task = writing.claim(session, project.id, person.id)
            sent = writing.Written(task.prompt_id, uuid.uuid4(), f"Ideal {i}")
            ids.append(writing.submit(session, project.id, person.id, sent).demonstration_id)
    judge(make, project, policy, make.person(project))
    whole = history.page(session, project.id, person.id)
    assert [entry.id for entry in whole] == ids[::-1]
    pages, before = [], history.LAST
    while page := history.page(session, project.id, person.id, before, count=3):
        pages += page
        before = (page[-1].at, page[-1].id)
    assert pages == whole
    assert {entry.state for entry in whole} == {"counted"}


def test_an_entry_says_what_was_chosen_whether_it_counts_and_whether_it_was_changed(
    session, make, project, policy, person
):
    make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id, 1)
    judgments.submit(session, project.id, person.id, make.submission(task, Verdict.TIE))
    receipt = judgments.submit(session, project.id, person.id, make.submission(task, Verdict.RIGHT))
    [entry] = history.page(session, project.id, person.id)
    assert (entry.text, entry.said.verdict, entry.revised, entry.state) == (task.answers[1], "right", True, "counted")
    assert entry.target == task.comparison_id
    judgments.undo(session, project.id, person.id)
    [entry] = history.page(session, project.id, person.id)
    assert (entry.state, entry.said.verdict, entry.text) == ("withdrawn", "right", task.answers[1])
    record = history.judgment(session, project.id, person.id, receipt.judgment_id)
    assert [(one.revision, one.withdrawn, one.verdict) for one in record.said] == [
        (3, True, None),
        (2, False, "right"),
        (1, False, "tie"),
    ]
    assert [record.answers[i] for i in record.said[1].order] == task.answers


def test_what_came_too_late_says_so(session, make, project, policy, person):
    other = make.person(project)
    make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id, 1)
    session.execute(update(Assignment).values(lease_expires_at=text("now() - interval '1 second'")))
    make.judged(project, other)
    judgments.submit(session, project.id, person.id, make.submission(task))
    assert [entry.state for entry in history.page(session, project.id, person.id)] == ["surplus"]


def test_gold_and_repeats_look_like_any_other_comparison(session, make, project, policy, person):
    receipts = [judge(make, project, policy, person) for _ in range(3)]
    heads = [session.get_one(Judgment, one.judgment_id).comparison_id for one in receipts]
    ordinary = history.page(session, project.id, person.id)
    session.execute(text("DELETE FROM slot"))
    for comparison_id, reason, of in zip(heads, (DrawReason.GOLD, DrawReason.REPEAT), (None, heads[2]), strict=False):
        session.execute(
            update(Comparison).where(Comparison.id == comparison_id).values(reason=reason, repeat_of=of, votes_wanted=0)
        )
    checks = history.page(session, project.id, person.id)
    assert checks[1:] == ordinary[1:]
    assert history.judgment(session, project.id, person.id, receipts[0].judgment_id).state == "counted"


def test_a_demonstration_opens_with_all_its_versions(session, make, project, person):
    make.prompt(project)
    task = writing.claim(session, project.id, person.id)
    sent = [writing.Written(task.prompt_id, uuid.uuid4(), words) for words in ("One.", "Two.")]
    first, second = (writing.submit(session, project.id, person.id, one).demonstration_id for one in sent)
    for any_of_them in (first, second):
        found = history.demonstration(session, project.id, person.id, any_of_them)
        assert [one.text for one in found.versions] == ["Two.", "One."]
        assert not found.beside
    [entry] = history.page(session, project.id, person.id)
    assert (entry.id, entry.revised, entry.text) == (second, True, "Two.")


def test_only_ones_own_is_there(session, make, project, policy, person):
    other, elsewhere = make.person(project), make.project()
    mine = judge(make, project, policy, person)
    make.prompt(project)
    task = writing.claim(session, project.id, person.id)
    sent = writing.Written(task.prompt_id, uuid.uuid4(), "Mine.")
    written = writing.submit(session, project.id, person.id, sent)
    for project_id, account_id in [(project.id, other.id), (elsewhere.id, person.id)]:
        assert history.page(session, project_id, account_id) == []
        with pytest.raises(NotFound):
            history.judgment(session, project_id, account_id, mine.judgment_id)
        with pytest.raises(NotFound):
            history.demonstration(session, project_id, account_id, written.demonstration_id)
    for ask in (history.judgment, history.demonstration):
        with pytest.raises(NotFound):
            ask(session, project.id, person.id, new_id())


def test_a_page_is_two_statements_that_read_along_indexes_however_long_the_record(
    session, make, project, policy, person, count_statements
):
    for _ in range(3):
        judge(make, project, policy, person)
    with count_statements() as statements:
        history.page(session, project.id, person.id)
    assert len(statements) == 2
    assert not any("OFFSET" in one or "count(*)" in one for one in statements)
