"""The head's pieces: how a batch is cut, what members start from, what a temperature may be fitted on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.core.configs import RewardConfig
from app.core.records import PreferenceRecord
from app.policy.reward_model import HeadReward, RewardSettings
from app.policy.starter import new_starter
from app.training.failures import RunFailure
from app.training.order import Shuffler, derived_seed
from app.training.reward_data import Comparisons, read_comparisons
from app.training.reward_fit import drawn
from app.training.reward_head import backward, late_and_new, learnt_units, micro_batches, new_head, read
from tests.training.judgments import BAD, GOOD, preference

THREE = [GOOD, BAD, "Your kettle, noted."]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def comparisons(rows: list[dict[str, Any]], **config: Any) -> Comparisons:
    records = [PreferenceRecord.model_validate(row) for row in rows]
    return read_comparisons(records, [], new_starter("tiny").tokenizer, RewardConfig(**config), seed=0)


def head(seed: int = 0, **config: Any) -> HeadReward:
    run: Any = SimpleNamespace(config=RewardConfig(kind="head", **config), spec=SimpleNamespace(seed=seed))
    return new_head(run, new_starter("tiny")).train()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_batch_has_the_same_loss_and_gradient_however_it_is_cut(members: int, pooling: str) -> None:
    rows = [preference(i, [[i % 2], [1 - i % 2]] if i % 3 else [[0, 1]]) for i in range(7)]
    rows += [preference(i, [[0], [2], [1]], completions=THREE) for i in range(7, 10)]
    data, model = comparisons(rows), head(members=members, pooling=pooling)
    batch, draws = torch.arange(2, len(data.train.pairs.first)), drawn(data.train.units, members, 0).float()
    threshold = torch.nn.Parameter(torch.tensor(0.3))
    found = []
    for most in (64, 7, 3, 1):
        model.zero_grad()
        threshold.grad = None
        config = RewardConfig(kind="head", micro_batch_size=most)
        loss, margin = backward(model, data, batch, draws, threshold, config)
        assert threshold.grad is not None
        gradient = [threshold.grad.clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        assert len(gradient) > 10
        found.append((loss, margin, gradient))
    for loss, margin, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert torch.allclose(margin, found[0][1], atol=1e-5)
        assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(gradient, found[0][2], strict=True))


def test_answers_of_one_judgment_share_a_part_and_are_read_once() -> None:
    rows = [preference(i, [[0], [2], [1]], completions=THREE) for i in range(4)]
    data = comparisons(rows)
    batch = torch.arange(len(data.train.pairs.first))
    parts = list(micro_batches(data, batch, most=6))
    assert sorted(torch.cat(parts).tolist()) == batch.tolist()
    for part in parts:
        pairs = data.train.pairs.where(batch[part])
        assert len(torch.cat([pairs.first, pairs.second]).unique()) == 6  # of two judgments, not 12 for their 6 pairs
        assert pairs.weight.tolist() == pytest.approx([1 / 3] * 6)
        assert float(pairs.weight.sum()) == pytest.approx(2.0)


def test_a_batch_that_fits_is_not_cut() -> None:
    data = comparisons([preference(i, [[0], [1]]) for i in range(4)])
    assert [part.tolist() for part in micro_batches(data, torch.arange(4), most=8)] == [[0, 1, 2, 3]]


def test_members_start_apart_and_the_first_as_a_single_one() -> None:
    alone, three = head(seed=5), head(seed=5, members=3)
    assert torch.equal(alone.head.weight[0], three.head.weight[0])
    assert not torch.equal(three.head.weight[1], three.head.weight[2])
    assert not torch.equal(three.head.weight[0], head(seed=6, members=3).head.weight[0])
    # Normal with variance 1 / (64 + 1): three times 64 numbers.
    assert three.head.weight.std().item() == pytest.approx((1 / 65) ** 0.5, rel=0.2)


def test_only_the_end_of_a_single_pass_is_foreseen_and_only_on_new_prompts() -> None:
    # 30 judgments of 15 prompts, in batches of 2.
    rows = [preference(i % 15, [[0], [1]], judgment_id=f"j{i}", comparison_id=f"c{i}") for i in range(30)]
    data = comparisons(rows)
    config = RewardConfig(batch_size=2)
    mask = late_and_new(data.train, list(range(30)), config, seed=3)
    order = Shuffler(30, 3).take(30)
    expected = set()
    for place, number in enumerate(order):
        before = {rows[other]["prompt_id"] for other in order[: place // 2 * 2]}
        if place // 2 >= 10 and rows[number]["prompt_id"] not in before:
            expected.add(number)
    assert set(data.train.pairs.judgment[mask].tolist()) == expected
    assert 0 < len(expected) < 10
    assert not late_and_new(data.train, list(range(30)), RewardConfig(batch_size=2, epochs=2), seed=3).any()
    assert not late_and_new(data.train, list(range(30)), RewardConfig(calibration_share=0.2), seed=3).any()


def test_calibration_keeps_whole_prompts_back() -> None:
    rows = [preference(i % 40, [[0], [1]], judgment_id=f"j{i}", comparison_id=f"c{i}") for i in range(80)]
    data = comparisons(rows)
    kept = learnt_units(data.train, RewardConfig(calibration_share=0.25), seed=0)
    back = set(range(80)) - set(kept)
    assert {i % 40 for i in back}.isdisjoint({i % 40 for i in kept})
    assert 8 <= len(back) <= 32  # 20 on average
    assert learnt_units(data.train, RewardConfig(), seed=0) == list(range(80))


def test_calibration_that_leaves_nothing_to_learn_is_refused() -> None:
    data = comparisons([preference(0, [[0], [1]])])
    (prompt,) = data.train.prompts()
    seed = next(seed for seed in range(99) if derived_seed(seed, "calibrate", prompt) < 1 << 62)
    with pytest.raises(RunFailure, match="no preference to learn from") as failure:
        learnt_units(data.train, RewardConfig(calibration_share=0.5), seed)
    assert failure.value.error.kind == "config"


@pytest.mark.parametrize("pooling", ["last", "mean", "sum"])
def test_padding_is_not_read_in_training_either(pooling: str) -> None:
    data, model = comparisons([preference(i, [[0], [1]]) for i in range(5)]), head(members=2, pooling=pooling)
    with torch.no_grad():
        together = read(model, data.answers, 32)
        alone = torch.cat([read(model, [answer], 1) for answer in data.answers], 1)
    assert together.shape == (2, len(data.answers))
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_model_without_a_single_linear_score_is_refused() -> None:
    body = SimpleNamespace(config=SimpleNamespace(pad_token_id=0), score=None)
    with pytest.raises(Exception, match="no single linear score"):
        HeadReward(RewardSettings(), body)  # type: ignore[arg-type]
