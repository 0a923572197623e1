import uuid
from collections.abc import Sequence

import pytest
from sqlalchemy import func, select

from app.core.pairing import why_not
from app.core.sampler import CompletionRequest, CompletionResult, SamplerFailure
from app.core.vocabulary import DropCause, FinishReason, Mode, Split
from app.jobs.pool import BATCH, FIRST_BATCH, NotServing, refill
from app.store import checkpoints, comparisons, prompts
from app.store.models import Candidate, Comparison, Completion, Prompt


class Sampler:
    """Answers from a script: `answers(i)` is the text of the i-th request, None where it fails."""

    def __init__(self, answers=lambda i: f"answer {i}"):
        self.answers, self.asked = answers, []

    def complete(self, requests: Sequence[CompletionRequest]) -> list[CompletionResult | SamplerFailure]:
        first = len(self.asked)
        self.asked += requests
        return [self._answer(first + i) for i in range(len(requests))]

    def _answer(self, i: int) -> CompletionResult | SamplerFailure:
        text = self.answers(i)
        if text is None:
            return SamplerFailure("no answer")
        return CompletionResult(
            text=text,
            token_ids=[1, 2],
            logprobs=[-0.5, -0.25],
            finish_reason=FinishReason.STOP,
            chat_template_hash="ab" * 32,
            latency_ms=3.0,
        )


@pytest.fixture
def project(sessions, make_with):
    """A project with 200 prompts, a current policy, and a pool of ten."""
    with sessions.begin() as s:
        make = make_with(s)
        made = make.project(pool_target=10)
        make.policy(made, promote=True)
        rows = [[{"role": "user", "content": f"Where is order {n}?"}] for n in range(200)]
        prompts.add_prompts(s, made, rows, "test")
    return made


def test_the_first_pairs_come_in_a_small_batch_and_then_the_pool_fills_to_its_target(sessions, project):
    sampler = Sampler()
    assert refill(sessions, sampler, project.id) == FIRST_BATCH == 4
    assert refill(sessions, sampler, project.id) == 6
    assert refill(sessions, sampler, project.id) is None
    with sessions() as s:
        assert comparisons.ready(s, project.id) == 10
    assert len(sampler.asked) == 20
    assert BATCH == 16


def test_a_pair_is_one_prompt_twice_from_different_seeds_with_its_whole_provenance(sessions, project):
    sampler = Sampler()
    refill(sessions, sampler, project.id)
    first, second = sampler.asked[:2]
    assert first.messages == second.messages
    assert first.seed != second.seed
    with sessions() as s:
        stored = s.query(Completion).filter_by(seed=first.seed).one()
        policy = checkpoints.policies(s, project.id)[0]
        assert first.model == policy.folder_name
        assert (stored.text, stored.checkpoint_id, stored.temperature, stored.top_p) == (
            "answer 0",
            policy.id,
            1.0,
            1.0,
        )
        assert (stored.token_ids, stored.logprobs) == ([1, 2], [-0.5, -0.25])
        assert (stored.finish_reason, stored.chat_template_hash) == ("stop", "ab" * 32)


def test_a_pair_carries_the_probability_of_its_draw(sessions, project):
    refill(sessions, Sampler(), project.id)
    with sessions() as s:
        counts = prompts.counts(s, project.id)
        sides = {Split.TRAIN: 0.9 / counts.train, Split.HELDOUT: 0.1 / counts.heldout}
        stored = s.query(Comparison).filter_by(project_id=project.id).all()
        for pair in stored:
            assert pair.probability == pytest.approx(sides[s.get_one(Prompt, pair.prompt_id).split])
    assert len(stored) == FIRST_BATCH


def test_prompts_come_from_both_sides_of_the_split(sessions, project):
    with sessions.begin() as s:
        s.merge(project).pool_target = 150
    while refill(sessions, Sampler(lambda i: f"answer {uuid.uuid4()}"), project.id):
        pass
    with sessions() as s:
        drawn = s.query(Prompt).filter(Prompt.project_id == project.id, Prompt.drawn > 0).all()
        heldout = sum(prompt.split == Split.HELDOUT for prompt in drawn)
        total = s.query(Prompt).filter_by(project_id=project.id, split=Split.HELDOUT).count()
    assert sum(prompt.drawn for prompt in drawn) == 150  # by chance a side may come to its second round
    assert 0 < heldout <= total


@pytest.mark.parametrize(
    ("texts", "cause"),
    [
        (["Fine.", "Good."], None),
        (["Fine.", "  "], DropCause.EMPTY),
        (["", ""], DropCause.EMPTY),
        (["Fine.", "Go\ufffdd."], DropCause.BROKEN),
        (["Fine.", "Good\x00."], DropCause.BROKEN),
        (["Two  words", "Two words\n"], DropCause.IDENTICAL),
        (["Two words", "two words"], None),
        (["A line\nand\tanother", "Good."], None),
    ],
)
def test_what_cannot_be_judged_is_not_shown(texts, cause):
    assert why_not(texts) == cause


def test_what_is_not_shown_is_counted_by_policy_and_cause(sessions, project):
    answers = ["same", "same", "", "fine", "fine", "b\ufffdd", "left", "right"]
    assert refill(sessions, Sampler(lambda i: answers[i]), project.id) == 1
    with sessions() as s:
        policy = checkpoints.policies(s, project.id)[0]
        assert comparisons.dropped(s, project.id) == {
            policy.id: {DropCause.IDENTICAL: 1, DropCause.EMPTY: 1, DropCause.BROKEN: 1}
        }
        assert comparisons.ready(s, project.id) == 1


def test_a_failing_sampler_is_nobodys_dropped_pair(sessions, project):
    assert refill(sessions, Sampler(lambda i: None if i == 3 else f"answer {i}"), project.id) == 3
    with sessions() as s:
        assert comparisons.dropped(s, project.id) == {}
    with pytest.raises(NotServing):
        refill(sessions, Sampler(lambda i: None), project.id)


def test_pairs_sampled_while_another_policy_was_promoted_are_let_go(sessions, project, make_with):
    class Promoting(Sampler):
        def complete(self, requests):
            with sessions.begin() as s:
                newer = make_with(s).policy(s.merge(project, load=False))
                checkpoints.promote(s, project.id, newer.id, None)
            return super().complete(requests)

    assert refill(sessions, Promoting(), project.id) == 0
    with sessions() as s:
        assert comparisons.ready(s, project.id) == 0


def test_a_project_without_a_policy_or_without_prompts_waits(sessions, make_with):
    with sessions.begin() as s:
        make = make_with(s)
        without_policy, without_prompts = make.project(), make.project()
        make.policy(without_prompts, promote=True)
    assert refill(sessions, Sampler(), without_policy.id) is None
    assert refill(sessions, Sampler(), without_prompts.id) is None


def test_a_project_that_ranks_gets_as_many_answers_a_prompt_as_it_asks_for(sessions, project):
    with sessions.begin() as s:
        ranks = s.merge(project)
        ranks.mode, ranks.answers = Mode.RANK, 4
    sampler = Sampler()
    assert refill(sessions, sampler, project.id) == 2
    assert len(sampler.asked) == 8
    with sessions() as s:
        kept = s.scalars(select(func.count()).select_from(Candidate).group_by(Candidate.comparison_id)).all()
    assert kept == [4, 4]
