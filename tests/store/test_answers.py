"""What is said beside a verdict, rankings, better answers, and looking at a judgment again."""

import uuid
from dataclasses import replace

import pytest
from sqlalchemy import select

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import FinishReason, Flag, Mode, Origin, Verdict
from app.store import claims, comparisons, exports, judgments
from app.store.models import Completion, Demonstration, Draft, JudgmentRevision
from app.store.revising import look_again

ALL = {"flags": {0: [Flag.WRONG, Flag.UNSAFE]}, "ratings": {1: 4}, "rationale": " It invents an order. "}


@pytest.fixture
def task(session, make, project, person):
    project.ask_ratings = True
    make.pair(project, make.policy(project, promote=True))
    return claims.claim(session, project.id, person.id)[0]


@pytest.fixture
def ranked(session, make, project, person):
    """A comparison of four answers, leased."""
    project.mode, project.answers = Mode.RANK, 4
    project.ask_ratings = True
    policy, prompt = make.policy(project, promote=True), make.prompt(project)
    one = {"checkpoint_id": policy.id, "temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "chat_template_hash": "ab"}
    one["finish_reason"] = FinishReason.STOP
    answers = [comparisons.SampledCompletion(text=f"answer {i}", seed=i, **one) for i in range(4)]
    comparisons.add_sampled_pair(session, project, prompt.id, answers)
    return claims.claim(session, project.id, person.id)[0]


def stored(session):
    return session.scalars(select(JudgmentRevision).order_by(JudgmentRevision.submitted_at.desc()).limit(1)).one()


def test_all_that_is_said_is_stored_by_canonical_position_and_comes_back(session, make, project, person, task):
    submission = make.submission(task, ideal="A better answer.", edited_from=1, **ALL)
    receipt = judgments.submit(session, project.id, person.id, submission)
    one = stored(session)
    assert (one.flags, one.ratings, one.rationale) == ({"0": ["unsafe", "wrong"]}, {"1": 4}, "It invents an order.")
    said = look_again(session, project.id, person.id, task.comparison_id).said
    assert said == {
        "verdict": Verdict.LEFT,
        "strength": None,
        "tiers": None,
        "flags": {"0": ["unsafe", "wrong"]},
        "ratings": {"1": 4},
        "rationale": "It invents an order.",
        "ideal": "A better answer.",
        "edited_from": 1,
    }
    assert judgments.submit(session, project.id, person.id, submission) == replace(receipt, replayed=True)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": {0: [Flag.WRONG]}},
        {"ratings": {1: 5}},
        {"rationale": "Another reason."},
        {"ideal": "Another answer."},
        {"edited_from": None},
    ],
)
def test_the_same_key_with_something_else_beside_it_is_another_body(session, make, project, person, task, change):
    submission = make.submission(task, ideal="A better answer.", edited_from=1, **ALL)
    judgments.submit(session, project.id, person.id, submission)
    with pytest.raises(Conflict, match="already used"):
        judgments.submit(session, project.id, person.id, replace(submission, **change))


def test_a_better_answer_becomes_a_demonstration_of_the_same_prompt(session, make, project, person, task):
    judgments.submit(session, project.id, person.id, make.submission(task, ideal="Better.", edited_from=0))
    shown = session.scalars(select(Demonstration).where(Demonstration.project_id == project.id)).one()
    written = session.get_one(Completion, shown.completion_id)
    first = session.get_one(Completion, written.edited_from_id)
    assert (written.text, written.origin, written.author_id) == ("Better.", Origin.EDITED, person.id)
    assert (written.prompt_id, first.text) == (first.prompt_id, task.answers[task.order.index(0)])
    assert stored(session).ideal_id == written.id


def test_a_changed_better_answer_replaces_its_demonstration_and_the_same_one_stays(
    session, make, project, person, task
):
    for ideal in ("First.", "First.", "Second."):
        judgments.submit(session, project.id, person.id, make.submission(task, ideal=ideal))
    shown = session.execute(
        select(Completion.text, Completion.origin, Demonstration.id, Demonstration.replaces_id)
        .join(Demonstration, Demonstration.completion_id == Completion.id)
        .where(Demonstration.project_id == project.id)
        .order_by(Demonstration.created_at)
    ).all()
    assert [(row.text, row.origin) for row in shown] == [("First.", Origin.WRITTEN), ("Second.", Origin.WRITTEN)]
    assert shown[1].replaces_id == shown[0].id


def test_a_ranking_is_stored_as_tiers_and_its_pairs_are_derived(session, make, project, person, ranked):
    submission = make.submission(ranked, None, tiers=[[2], [3, 0], [1]])
    judgments.submit(session, project.id, person.id, submission)
    one = stored(session)
    assert (one.verdict, one.tiers, one.both_bad, one.shown_order) == (None, [[2], [0, 3], [1]], False, ranked.order)
    assert judgments.submit(session, project.id, person.id, submission).replayed
    pairs = list(exports.export_trl(session, project.id))
    assert len(pairs) == 5
    assert look_again(session, project.id, person.id, ranked.comparison_id).said["tiers"] == [[2], [0, 3], [1]]


def test_of_several_answers_none_may_be_good(session, make, project, person, ranked):
    submission = make.submission(ranked, Verdict.BOTH_BAD)
    judgments.submit(session, project.id, person.id, submission)
    assert (stored(session).verdict, stored(session).tiers, stored(session).both_bad) == (None, [[0, 1, 2, 3]], True)
    assert judgments.submit(session, project.id, person.id, submission).replayed
    with pytest.raises(Conflict):
        judgments.submit(session, project.id, person.id, replace(submission, verdict=Verdict.TIE))


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": Verdict.LEFT},
        {"verdict": None},
        {"verdict": Verdict.TIE, "tiers": [[0, 1, 2, 3]]},
        {"verdict": None, "tiers": [[0], [1], [2]]},
        {"verdict": None, "tiers": [[0], [1], [2], [2]]},
        {"verdict": None, "tiers": [[0, 1, 2, 3], []]},
        {"verdict": None, "tiers": [[0], [1], [2], [4]]},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "order": [0, 1]},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "ratings": {4: 1}},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "ratings": {0: 6}},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "flags": {-1: [Flag.BROKEN]}},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "rationale": "x" * 4001},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "ideal": "x" * 20_001},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "ideal": "x", "edited_from": 4},
        {"verdict": None, "tiers": [[0], [1], [2], [3]], "rationale": "a\0b"},
    ],
)
def test_a_ranking_that_makes_no_sense_is_refused_whole(session, make, project, person, ranked, fields):
    with pytest.raises(Invalid):
        judgments.submit(session, project.id, person.id, replace(make.submission(ranked), **fields))
    assert session.scalars(select(JudgmentRevision)).all() == []
    assert session.scalars(select(Demonstration)).all() == []


def test_what_is_not_asked_for_is_refused_and_ties_too_where_there_are_none(session, make, project, person, ranked):
    project.ask_flags = project.ask_ratings = project.ask_rationale = project.ask_ideal = project.allow_tie = False
    session.flush()
    order = {"verdict": None, "tiers": [[0], [1], [2], [3]]}
    for said in (*({name: value} for name, value in ALL.items()), {"ideal": "x"}, {"tiers": [[0, 1], [2], [3]]}):
        with pytest.raises(Invalid):
            judgments.submit(session, project.id, person.id, make.submission(ranked, **(order | said)))
    judgments.submit(session, project.id, person.id, make.submission(ranked, **order))


def test_a_pair_wants_a_side_and_no_order(session, make, project, person, task):
    for fields in ({"tiers": [[0], [1]]}, {"tiers": None}):
        with pytest.raises(Invalid, match="wants a side"):
            judgments.submit(session, project.id, person.id, make.submission(task, None, **fields))


def test_a_draft_comes_with_its_task_and_goes_with_the_judgment_or_a_skip(session, make, project, person, task):
    def keep():
        session.add(
            Draft(account_id=person.id, task_id=task.comparison_id, project_id=project.id, body={"rationale": "half"})
        )
        session.flush()

    keep()
    assert claims.claim(session, project.id, person.id)[0].draft == {"rationale": "half"}
    judgments.submit(session, project.id, person.id, make.submission(task))
    assert session.scalars(select(Draft)).all() == []
    judgments.undo(session, project.id, person.id)
    session.expunge_all()
    keep()
    judgments.skip(session, project.id, person.id, task.comparison_id)
    assert session.scalars(select(Draft)).all() == []


def test_undo_gives_back_what_was_said_beside_the_verdict(session, make, project, person, task):
    judgments.submit(session, project.id, person.id, make.submission(task, ideal="Better.", **ALL))
    back = judgments.undo(session, project.id, person.id)
    assert back.draft == {
        "flags": {"0": ["unsafe", "wrong"]},
        "ratings": {"1": 4},
        "rationale": "It invents an order.",
        "ideal": "Better.",
    }


def test_only_ones_own_standing_judgment_can_be_looked_at_again(session, make, project, person, task):
    with pytest.raises(NotFound):
        look_again(session, project.id, person.id, task.comparison_id)
    judgments.submit(session, project.id, person.id, make.submission(task))
    assert look_again(session, project.id, person.id, task.comparison_id).task.answers == task.answers
    for project_id, account_id in ((project.id, make.person(project).id), (uuid.uuid4(), person.id)):
        with pytest.raises(NotFound):
            look_again(session, project_id, account_id, task.comparison_id)
    judgments.undo(session, project.id, person.id)
    with pytest.raises(NotFound):
        look_again(session, project.id, person.id, task.comparison_id)


def test_a_better_answer_costs_one_statement_more(session, make, project, person, task, count_statements):
    with count_statements() as statements:
        judgments.submit(session, project.id, person.id, make.submission(task, ideal="Better.", **ALL))
    assert len(statements) == 4
