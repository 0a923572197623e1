import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import log_softmax

from app.core.configs import PPOConfig
from app.policy.checkpoint import load_policy
from app.training import __main__ as entry
from app.training import networks, ppo
from app.training.critic import ValueFunction
from app.training.failures import Cancelled, RunFailure
from app.training.kl import Beta
from app.training.learner import Learner
from app.training.ppo import Targets, policy_gradient, train, value_gradient
from app.training.rollout import Batch, Episode, read_answers
from app.training.run import Run

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "training" / "toy_ppo.py"
Make = Callable[..., Path]
Rows = Callable[[Path], list[dict[str, Any]]]
SMALL = {
    "iterations": 3,
    "batch_size": 8,
    "minibatches": 2,
    "micro_batch_size": 3,
    "epochs": 2,
    "max_tokens": 8,
    "evaluation_prompts": 4,
    "sample_prompts": 2,
    "learning_rate": 5e-4,
    "warmup_iterations": 0,
    "value_warmup": 0,
    "beta": 0.1,
    "approx_kl_stop": None,
    "kl_budget": None,
    "threads": 1,
}


def _toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_ppo", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = _toy()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(networks, "load_reward_model", toy.load_toy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "policy"
    toy.make_policy(folder)
    return folder


@pytest.fixture
def make(make_run: Make, policy: Path) -> Make:
    """A PPO run directory on the toy policy; keyword arguments are configuration."""

    def build(name: str = "run", heldout: int = 2, **config: Any) -> Path:
        data = {"prompts.jsonl": toy.prompt_rows(heldout)}
        folders = {"policy": str(policy), "reward_model": str(policy)}
        return make_run(name, kind="ppo", config={**SMALL, **config}, data=data, **folders)

    return build


def opened(root: Path) -> Run[PPOConfig]:
    run = Run.open(root)
    run.seed_everything()
    return run


def rows(root: Path, phase: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["phase"] == phase]


# ---- the forward passes -------------------------------------------------------------------------------------------

EPISODES = [
    Episode([5, 6, 7], [8, 9, 1], True, [-1.0, -2.0, -3.0]),
    Episode([5], [9], False, [-4.0]),
    Episode([7, 7, 7, 7, 7], [6, 5, 4, 3], False, [-1.0] * 4),
    Episode([20, 21], [22, 1], True, [-0.5, -0.25]),
]


def batch_of(episodes: list[Episode], micro: int = 2, minibatches: int = 1, pad: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        episodes,
        pad_id=pad,
        minibatches=minibatches,
        micro_batch_size=micro,
        generator=generator,
        device=torch.device("cpu"),
    )


def test_a_token_is_predicted_by_the_column_before_it(policy: Path) -> None:
    model = load_policy(policy).model
    batch = batch_of(EPISODES)
    found = batch.per_token(lambda micro: read_answers(model, micro, 0.7).logprobs)
    for row, episode in enumerate(EPISODES):
        # One sequence alone, without padding, through the model's plain forward.
        logits = model(torch.tensor([episode.prompt + episode.answer])).logits[0] / 0.7
        for t, token in enumerate(episode.answer):
            expected = log_softmax(logits[len(episode.prompt) + t - 1], -1)[token].item()
            assert found[row, t].item() == pytest.approx(expected, abs=1e-5)
    assert (found[~batch.mask] == 0).all()


def test_what_stands_in_the_padding_changes_nothing(policy: Path) -> None:
    model = load_policy(policy).model
    value = ValueFunction(toy.load_toy(policy))

    def read(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = batch_of(EPISODES, micro=4, pad=pad)
        logprobs = batch.per_token(lambda micro: read_answers(model, micro, 1.0).logprobs)
        return logprobs, batch.per_token(value)

    for one, other in zip(read(0), read(33), strict=True):
        assert torch.equal(one, other)


def test_minibatches_share_out_every_row_once_and_count_their_tokens() -> None:
    batch = batch_of(EPISODES, micro=1, minibatches=2)
    rows = [row for micro in batch for row in micro.rows.tolist()]
    assert sorted(rows) == [0, 1, 2, 3]
    assert sum(minibatch.count for minibatch in batch.minibatches) == 3 + 1 + 4 + 2
    assert all(len(minibatch.micro) == 2 for minibatch in batch.minibatches)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_gradients_are_the_same_whatever_the_micro_batch(make: Make, micro: int) -> None:
    def gradients(name: str, size: int) -> dict[str, torch.Tensor]:
        learner = Learner(opened(make(name, micro_batch_size=size)))
        learner.policy.double()
        learner.value.double()
        episodes = learner.sample(1)
        batch = learner.read(episodes, 1, torch.Generator().manual_seed(1)).batch
        generator = torch.Generator().manual_seed(2)
        parts = [torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64) for _ in range(4)]
        targets = Targets(parts[0] * 0.2 - 7.0, parts[1], parts[2], parts[3])
        config = PPOConfig(**{**SMALL, "micro_batch_size": size})
        policy_gradient(learner, batch.minibatches[0], targets, config)
        value_gradient(learner, batch.minibatches[0], targets, config)
        named = [*learner.policy.named_parameters("policy"), *learner.value.named_parameters("value")]
        return {name: p.grad for name, p in named if p.grad is not None}

    whole, cut = gradients("whole", 100), gradients("cut", micro)
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=1e-10, rtol=1e-8)


# ---- the algorithm ------------------------------------------------------------------------------------------------


def test_at_learning_rate_zero_every_ratio_is_exactly_one(make: Make) -> None:
    root = make(learning_rate=0.0, value_learning_rate=0.0, epochs=3, temperature=0.8, log_every=1)
    train(opened(root))
    for row in rows(root):
        assert row["policy/ratio_error"] == 0.0
        assert row["policy/approxkl_avg"] == 0.0
        assert row["policy/updates"] == 6
        # The engine and the training pass agree on what was sampled.
        assert row["rollout/logprob_gap"] < 1e-4
        # And the reference is the policy itself.
        assert row["objective/kl"] == 0.0


def test_with_a_learning_rate_only_the_first_ratio_is_one(make: Make) -> None:
    root = make(learning_rate=3e-3)
    train(opened(root))
    for row in rows(root):
        assert row["policy/first_ratio_error"] == 0.0
        assert row["policy/ratio_error"] > 1e-4


def test_a_reward_that_anybody_can_check_goes_up(make: Make) -> None:
    root = make(
        iterations=20, batch_size=32, micro_batch_size=32, learning_rate=5e-3, value_learning_rate=5e-3, beta=0.02
    )
    run = opened(root)
    train(run)
    result = json.loads((root / "result.json").read_text())["metrics"]
    # The reward is 4 x (share of even tokens - 1/2): -1 for the penalty, about 0 for chance, 2 at best.
    assert abs(result["reward_before"] + 1) < 0.6
    assert result["reward"] > result["reward_before"] + 1.0
    assert result["kl"] > 1.0
    assert result["episodes"] == 640
    assert rows(root)[-1]["value/explained_variance"] > 0


def test_a_price_on_kl_keeps_the_policy_nearer(make: Make) -> None:
    kl = {}
    for beta in (0.0, 5.0):
        root = make(f"beta-{beta}", iterations=15, batch_size=32, micro_batch_size=32, learning_rate=5e-3, beta=beta)
        train(opened(root))
        kl[beta] = rows(root)[-1]["objective/kl_k3"]
    assert kl[5.0] < 0.5 * kl[0.0]


def test_rollouts_use_train_prompts_and_samples_the_held_out_ones(make: Make, rows_of: Rows) -> None:
    root = make(heldout=3, sample_every=1)
    run = opened(root)
    learner = Learner(run)
    assert [prompt.prompt_id for prompt in learner.train_prompts] == [f"p{i}" for i in range(3, 12)]
    train(run)
    samples = rows_of(root / "samples.jsonl")
    assert {sample["prompt_id"] for sample in samples} == {"p0", "p1"}
    assert sorted({sample["step"] for sample in samples}) == [0, 1, 2, 3]
    assert all(isinstance(sample["reward"], float) for sample in samples)


def test_an_answer_cut_short_pays_and_its_rate_is_logged(make: Make) -> None:
    rewards = {}
    for penalty in (0.0, 2.0):
        root = make(f"penalty-{penalty}", iterations=1, missing_eos_penalty=penalty, max_tokens=2)
        train(opened(root))
        [row] = rows(root)
        rewards[penalty] = row["objective/scores"]
        # An untrained policy ends an answer of two tokens by chance only.
        assert row["completions/truncated_share"] == 1 - row["val/num_eos_tokens"] / 8
        assert row["completions/truncated_share"] > 0.5
    assert rewards[0.0] - rewards[2.0] == pytest.approx(2.0 * row["completions/truncated_share"], abs=1e-6)


def test_every_metric_of_the_table_is_logged(make: Make) -> None:
    root = make(iterations=1)
    train(opened(root))
    [row] = rows(root)
    wanted = {
        "objective/kl",
        "objective/kl_k3",
        "objective/scores",
        "objective/scores_std",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/beta",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "policy/grad_norm",
        "policy/first_ratio_error",
        "policy/ratio_error",
        "policy/updates",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/num_eos_tokens",
        "value/explained_variance",
        "value/grad_norm",
        "completions/mean_length",
        "completions/truncated_share",
        "rollout/logprob_gap",
        "lr",
        "episode",
        "eps",
        "time/sample",
        "time/score",
        "time/update",
    }
    assert wanted == set(row) - {"step", "time", "phase"}
    assert all(row[name] is not None for name in wanted)
    explained = (ROOT / "docs" / "training.md").read_text()
    evaluated = set(rows(root, "evaluate")[0]) - {"step", "time", "phase"}
    assert [name for name in wanted | evaluated if f"`{name}`" not in explained] == []


# ---- guard rails --------------------------------------------------------------------------------------------------


def test_updates_of_a_batch_stop_once_the_policy_is_far_from_its_sampler(make: Make) -> None:
    root = make(learning_rate=0.05, approx_kl_stop=1e-3, epochs=5, iterations=1)
    train(opened(root))
    [row] = rows(root)
    # The first update is always made; the second minibatch sees where it led.
    assert row["policy/updates"] == 1


def test_the_policy_rests_while_the_value_function_warms_up(make: Make) -> None:
    root = make(value_warmup=2, learning_rate=5e-3)
    train(opened(root))
    assert [row["policy/updates"] for row in rows(root)] == [0, 0, 4]
    assert [row["objective/kl"] == 0 for row in rows(root)] == [True, True, True]
    assert all(row["loss/value_avg"] > 0 for row in rows(root))


def test_the_kl_budget_ends_the_run_with_the_last_policy_within_it(make: Make) -> None:
    settings = {"learning_rate": 0.02, "beta": 0.0, "schedule": "constant"}
    root = make(iterations=30, kl_budget=3.0, **settings)
    train(opened(root))
    result = json.loads((root / "result.json").read_text())
    assert result["metrics"]["stopped_by"] == "kl_budget"
    [stop] = rows(root, "stop")
    assert stop["objective/kl"] > 3.0
    assert all(row["objective/kl"] <= 3.0 for row in rows(root))
    assert 3 <= stop["step"] < 30
    # What is kept sampled the iteration before: it is what two iterations fewer, without a budget, end with.
    shorter = make("shorter", iterations=stop["step"] - 2, **settings)
    train(opened(shorter))
    kept, expected = weights(root), weights(shorter)
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_adaptive_beta_follows_the_target_in_nats_per_sequence() -> None:
    beta = Beta(PPOConfig(beta=0.1, kl_control="adaptive", kl_target=4.0, kl_gain=0.5))
    beta.update(4.4)  # 10 % over: beta up by 5 %
    assert beta.value == pytest.approx(0.105)
    beta.update(40.0)  # the error is clipped to 20 %: up by 10 %
    assert beta.value == pytest.approx(0.1155)
    beta.update(0.0)  # and down by 10 %
    assert beta.value == pytest.approx(0.10395)
    fixed = Beta(PPOConfig(beta=0.1))
    fixed.update(100.0)
    assert fixed.value == 0.1


def main_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The error that a run ends with."""
    monkeypatch.setattr(entry, "_log_to", lambda root: None)
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)
    assert entry.main([str(root)]) == 4
    assert not (root / "final").exists()
    error: dict[str, Any] = json.loads((root / "error.json").read_text())
    return error


def test_a_nan_in_the_weights_is_refused_before_the_first_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make()
    load = networks.load_reward_model

    def poisoned(folder: Path) -> Any:
        model = load(folder)
        torch.nn.init.constant_(model.head.bias, float("nan"))
        return model

    monkeypatch.setattr(networks, "load_reward_model", poisoned)
    error = main_of(root, monkeypatch)
    assert error["kind"] == "checkpoint"
    assert "reward model has weights that are NaN" in error["message"]
    assert not (root / "metrics.jsonl").exists()


def test_a_run_that_diverges_says_so_and_can_be_resumed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(iterations=4, checkpoint_every=1)
    update = ppo.update

    def poisoned(run: Any, learner: Learner, iteration: int, *rest: Any) -> dict[str, float]:
        figures = update(run, learner, iteration, *rest)
        if iteration == 3:
            torch.nn.init.constant_(next(learner.policy.parameters()), float("nan"))
        return figures

    monkeypatch.setattr(ppo, "update", poisoned)
    error = main_of(root, monkeypatch)
    assert error["kind"] == "diverged"
    assert "at step 4" in error["message"]
    monkeypatch.setattr(ppo, "update", update)
    # The state at step 3 is poisoned; whoever resumes takes an earlier one.
    shutil.rmtree(root / "checkpoints" / "step-000003")
    assert entry.main([str(root)]) == 0
    whole = make("whole", iterations=4, checkpoint_every=1)
    train(opened(whole))
    assert_same(whole, root)


def test_without_a_prompt_that_fits_the_run_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_log_to", lambda root: None)
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)
    for name, config, message in (
        ("long", {"max_tokens": 90}, "no train prompt"),
        ("odd", {"batch_size": 9}, "not divisible"),
    ):
        root = make(name, **config)
        assert entry.main([str(root)]) == 4
        assert message in json.loads((root / "error.json").read_text())["message"]


def test_a_reward_model_with_another_tokenizer_is_refused(make_run: Make, policy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    toy.make_policy(other, words="entirely different words in here")
    data = {"prompts.jsonl": toy.prompt_rows()}
    root = make_run(kind="ppo", config=SMALL, data=data, policy=str(policy), reward_model=str(other))
    with pytest.raises(RunFailure, match="other tokens"):
        train(opened(root))


# ---- cancel and kill -9 -------------------------------------------------------------------------------------------


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "final" / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "result.json").read_text() == (other / "result.json").read_text()
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


def test_a_cancelled_run_leaves_a_checkpoint_from_which_it_goes_on_to_the_same_bits(make: Make) -> None:
    settings = {"iterations": 4, "kl_control": "adaptive", "kl_budget": 1000.0, "optimizer": "muon"}
    whole, cancelled = make("whole", **settings), make("cancelled", **settings)
    train(opened(whole))
    run = opened(cancelled)
    run.request_stop()
    with pytest.raises(Cancelled):
        train(run)
    assert [path.name for path in (cancelled / "checkpoints").iterdir()] == ["step-000001"]
    torch.rand(3)  # what the process did in between does not matter
    train(Run.open(cancelled))
    assert_same(whole, cancelled)


def start(root: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(root)}
    with (root / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(TOY), str(root), str(pause)], stdout=log, stderr=log, env=environment
        )


def kill_at(root: Path, step: int, delay: float) -> None:
    """Kill a run once it has logged a step."""
    process = start(root, pause=0.05)
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        if (root / "metrics.jsonl").exists() and f'{{"step": {step},' in (root / "metrics.jsonl").read_text():
            break
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.wait()


def test_ppo_killed_between_two_checkpoints_ends_with_the_same_bits(make: Make) -> None:
    settings = {"iterations": 6, "checkpoint_every": 2}
    whole, killed = make("whole", **settings), make("killed", **settings)
    assert start(whole).wait() == 0
    kill_at(killed, step=3, delay=0.03)
    assert not (killed / "final").exists()
    assert start(killed).wait() == 0
    assert "resumed from step 2" in (killed / "log.txt").read_text()
    assert_same(whole, killed)
    assert [row["step"] for row in rows(killed)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(4))
def test_ppo_killed_again_and_again_ends_with_the_same_bits(make: Make, trial: int) -> None:
    settings = {"iterations": 8, "checkpoint_every": 1 + trial % 3, "optimizer": "muon", "kl_control": "adaptive"}
    whole, killed = make("whole", **settings), make("killed", **settings)
    assert start(whole).wait() == 0
    for step in (1 + trial, 4 + trial):
        kill_at(killed, step, delay=0.02 * trial)
    assert start(killed).wait() == 0
    assert_same(whole, killed)
