"""Comparisons made from sampled pairs."""

import pytest
from sqlalchemy import select

from app.core.errors import Invalid, NotFound
from app.core.vocabulary import DrawReason, DropCause, FinishReason
from app.store import claims, comparisons
from app.store.models import Comparison, Completion, Slot


@pytest.fixture
def project(make):
    return make.project(votes_wanted=2)


def answer(policy, words="An answer.", **fields):
    values = {
        "text": words,
        "checkpoint_id": policy.id,
        "seed": 7,
        "temperature": 0.9,
        "top_p": 0.95,
        "max_tokens": 64,
        "chat_template_hash": "cd" * 32,
        "finish_reason": FinishReason.LENGTH,
    }
    return comparisons.SampledCompletion(**(values | fields))


def test_a_pair_keeps_the_whole_provenance_of_its_answers(session, make, project):
    policy = make.policy(project)
    sampled = [
        answer(policy, "One.", latency_ms=12.5, token_ids=[5, 6, 2], logprobs=[-0.5, -1.25, -0.125]),
        answer(policy, "Two.", seed=2**62),
    ]
    made = comparisons.add_sampled_pair(session, project, make.prompt(project).id, sampled, probability=0.5)
    assert (made.checkpoint_id, made.reason, made.probability, made.votes_wanted) == (policy.id, "random", 0.5, 2)
    session.expire_all()
    one, two = session.scalars(select(Completion).order_by(Completion.text))
    assert (one.text, one.seed, one.temperature, one.top_p, one.max_tokens) == ("One.", 7, 0.9, 0.95, 64)
    assert (one.finish_reason, one.latency_ms, one.chat_template_hash) == ("length", 12.5, "cd" * 32)
    assert (one.token_ids, one.logprobs) == ([5, 6, 2], [-0.5, -1.25, -0.125])
    assert (two.seed, two.token_ids) == (2**62, None)
    assert list(session.scalars(select(Slot.state))) == ["free", "free"]


def test_answers_of_two_policies_belong_to_neither(session, make, project):
    one, other = make.policy(project), make.policy(project)
    pair = [answer(one), answer(other)]
    made = comparisons.add_sampled_pair(session, project, make.prompt(project).id, pair, DrawReason.CONTEST)
    assert made.checkpoint_id is None
    [task] = claims.claim(session, project.id, make.person(project).id)
    assert [task.policies[task.order.index(i)] for i in range(2)] == ["v1", "v2"]


def test_gold_wants_no_votes(session, make, project):
    policy = make.policy(project)
    pair = [answer(policy), answer(policy)]
    made = comparisons.add_sampled_pair(session, project, make.prompt(project).id, pair, DrawReason.GOLD)
    assert made.votes_wanted == 0
    assert list(session.scalars(select(Slot.state))) == []


def test_one_answer_or_another_projects_prompt_make_no_comparison(session, make, project):
    policy = make.policy(project)
    with pytest.raises(Invalid):
        comparisons.add_sampled_pair(session, project, make.prompt(project).id, [answer(policy)])
    foreign = make.prompt(make.project())
    with pytest.raises(NotFound):
        comparisons.add_sampled_pair(session, project, foreign.id, [answer(policy), answer(policy)])
    assert session.scalars(select(Comparison)).all() == []


def test_pairs_that_are_not_shown_are_counted_by_policy_and_cause(session, make, project):
    one, other = make.policy(project), make.policy(project)
    for policy, cause, n in [
        (one, DropCause.IDENTICAL, 2),
        (one, DropCause.IDENTICAL, 1),
        (one, DropCause.EMPTY, 1),
        (one, DropCause.BROKEN, 0),
        (other, DropCause.BROKEN, 4),
    ]:
        comparisons.count_dropped(session, project.id, policy.id, cause, n)
    assert comparisons.dropped(session, project.id) == {
        one.id: {DropCause.IDENTICAL: 3, DropCause.EMPTY: 1},
        other.id: {DropCause.BROKEN: 4},
    }
    assert comparisons.dropped(session, make.project().id) == {}


def test_retiring_one_policy_leaves_the_others_alone(session, make, project):
    old, new = make.policy(project), make.policy(project)
    make.pair(project, old)
    kept = make.pair(project, new)
    assert comparisons.retire_unjudged(session, project.id, old.id) == 1
    assert comparisons.retire_unjudged(session, project.id, old.id) == 0
    tasks = claims.claim(session, project.id, make.person(project).id)
    assert [task.comparison_id for task in tasks] == [kept.id]
