"""DPO runs from their directory: what they learn from, what they say, and how they go on after a kill."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.core.configs import DPOConfig
from app.core.records import PreferenceRecord
from app.policy.checkpoint import load_policy
from app.training import __main__ as entry
from app.training import dpo
from app.training.dpo import train
from app.training.dpo_data import read_judgments
from app.training.failures import Cancelled, RunFailure
from app.training.run import Run
from tests.training import toy_ppo as toy

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "training" / "toy_ppo.py"
Make = Callable[..., Path]
Rows = Callable[[Path], list[dict[str, Any]]]
SMALL = {
    "epochs": 2,
    "batch_size": 4,
    "micro_batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_share": 0.0,
    "eval_every": 2,
    "sample_every": 2,
    "evaluation_prompts": 2,
    "sample_prompts": 2,
    "max_tokens": 8,
    "threads": 1,
}
GOOD, BAD = "thank you for your patience", "question now"


def judgment(
    number: int, completions: Sequence[str] = (GOOD, BAD), tiers: Sequence[Sequence[int]] = ((0,), (1,)), **fields: Any
) -> dict[str, Any]:
    prompt = toy.PROMPTS[number % len(toy.PROMPTS)]
    return {
        "judgment_id": f"j{number}",
        "comparison_id": f"c{number}",
        "prompt_id": f"p{number % len(toy.PROMPTS)}",
        "prompt": [{"role": "user", "content": prompt}],
        "completions": list(completions),
        "tiers": [list(tier) for tier in tiers],
        "annotator": "a",
        "split": "heldout" if number % len(toy.PROMPTS) < 2 else "train",
    } | fields


def judgments() -> list[dict[str, Any]]:
    """Somebody likes thanks; the better answer is on either side."""
    left = [judgment(i, [f"{GOOD} {i}", BAD]) for i in range(6)]
    right = [judgment(i, [BAD, f"{GOOD} {i}"], [[1], [0]]) for i in range(6, 12)]
    return left + right


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
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
    """A DPO run directory on the toy policy; keyword arguments are configuration."""

    def build(name: str = "run", rows: Sequence[dict[str, Any]] | None = None, **config: Any) -> Path:
        data = {"preferences.jsonl": judgments() if rows is None else rows, "prompts.jsonl": toy.prompt_rows()}
        return make_run(name, kind="dpo", config={**SMALL, **config}, data=data, policy=str(policy))

    return build


def opened(root: Path) -> Run[DPOConfig]:
    run = Run.open(root)
    run.seed_everything()
    return run


def phase(root: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["phase"] == name]


def result_of(root: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((root / "result.json").read_text())["metrics"]
    return metrics


# ---- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_people_preferred_becomes_more_likely_than_what_they_did_not(
    make: Make, policy: Path, loss: str, optimizer: str
) -> None:
    root = make(loss=loss, optimizer=optimizer, epochs=6, learning_rate=3e-3)
    train(opened(root))
    result = result_of(root)
    assert result["heldout_accuracy"] == result["train_accuracy"] == 1.0
    assert (result["heldout_n"], result["pairs_train"]) == (2, 10)
    assert result["heldout_low"] == pytest.approx(0.342380227)  # Wilson, 2 of 2
    rows = phase(root, "train")
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    # The figures are those of the policies on disk: beta times the difference of log-ratios of a held-out pair.
    before, after = load_policy(policy), load_policy(root / "final")
    ratios = []
    for text in (f"{GOOD} 0", BAD):
        row = encoded(after.tokenizer, judgment(0, [text, "x"]))
        ratios.append(plain_logprob(after.model, row) - plain_logprob(before.model, row))
    other = []
    for text in (f"{GOOD} 1", BAD):
        row = encoded(after.tokenizer, judgment(1, [text, "x"]))
        other.append(plain_logprob(after.model, row) - plain_logprob(before.model, row))
    margin = result["beta"] * (ratios[0] - ratios[1] + other[0] - other[1]) / 2
    assert phase(root, "evaluate")[-1]["eval_rewards/margins"] == pytest.approx(margin, rel=1e-3)


def test_an_adapter_learns_what_the_whole_policy_would_and_goes_on_after_a_stop(make: Make, policy: Path) -> None:
    settings = {"lora_rank": 4, "epochs": 4, "learning_rate": 1e-2}
    whole = make("whole", **settings)
    train(opened(whole))
    assert result_of(whole)["train_accuracy"] == 1.0
    before, after = load_policy(policy), load_policy(whole / "final")
    row = encoded(after.tokenizer, judgment(0, [f"{GOOD} 0", "x"]))
    learnt = plain_logprob(after.model, row)
    assert learnt > plain_logprob(before.model, row) + 0.1
    adapted = PeftModel.from_pretrained(before.model, str(whole / "final" / "adapter"))
    assert plain_logprob(adapted, row) == pytest.approx(learnt, abs=1e-4)
    stopped = make("stopped", **settings)
    run = opened(stopped)
    run.request_stop()
    with pytest.raises(Cancelled):
        train(run)
    train(opened(stopped))
    ends = [load_file(root / "final" / "model.safetensors") for root in (whole, stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def encoded(tokenizer: Any, record: dict[str, Any]) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(record["prompt"], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(record["completions"][0], add_special_tokens=False).input_ids
    return list(prompt), [*answer, tokenizer.eos_token_id]


def plain_logprob(model: Any, row: tuple[list[int], list[int]]) -> float:
    """One sequence alone through the model's plain forward."""
    prompt, answer = row
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + t - 1, token]) for t, token in enumerate(answer))


def test_the_policy_begins_as_its_reference_and_the_loss_of_a_coin(make: Make) -> None:
    root = make(learning_rate=0.0)
    train(opened(root))
    for row in phase(root, "train"):
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert row["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert result_of(root)["kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_high_beta_keeps_the_policy_nearer(make: Make) -> None:
    kl = {}
    for beta in (0.02, 2.0):
        root = make(f"beta-{beta}", beta=beta, epochs=10, learning_rate=3e-3, evaluation_prompts=12)
        train(opened(root))
        row = phase(root, "evaluate")[-1]
        kl[beta] = row["eval_rewards/margins"] / beta  # nats of margin
    assert kl[2.0] < 0.5 * kl[0.02]


def test_the_sft_term_keeps_preferred_answers_likely(make: Make) -> None:
    logps = {}
    for weight in (0.0, 2.0):
        root = make(f"sft-{weight}", sft_weight=weight, epochs=12, learning_rate=3e-3)
        train(opened(root))
        logps[weight] = phase(root, "train")[-1]["logps/chosen"]
    assert logps[2.0] > logps[0.0] + 1.5


def test_answers_are_shown_at_the_start_on_the_way_and_at_the_end(make: Make, rows_of: Rows) -> None:
    root = make()
    train(opened(root))
    samples = rows_of(root / "samples.jsonl")
    # Ten train judgments by four are three updates a pass.
    assert sorted({row["step"] for row in samples}) == [0, 2, 4, 6]
    assert {row["prompt_id"] for row in samples} == {"p0", "p1"}
    assert len(phase(root, "train")) == 6
    assert [row["step"] for row in phase(root, "evaluate")] == [2, 4, 6]


def test_every_metric_is_explained_and_the_policy_loads_plainly(make: Make) -> None:
    root = make()
    train(opened(root))
    AutoModelForCausalLM.from_pretrained(root / "final")
    told = {"step", "time", "phase"}
    logged = (set(phase(root, "train")[0]) | set(phase(root, "evaluate")[0])) - told
    assert logged >= {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "nll",
        "grad_norm",
        "learning_rate",
        "eval_loss",
        "eval_rewards/accuracies",
        "eval/kl",
        "eval/length",
        "eval/truncated_share",
    }
    explained = (ROOT / "docs" / "training.md").read_text()
    names = {name.removeprefix("eval_") for name in logged} | set(result_of(root))
    assert [name for name in sorted(names) if f"`{name}`" not in explained] == []


def test_a_reference_of_its_own_is_what_log_ratios_are_taken_against(make: Make, policy: Path, tmp_path: Path) -> None:
    first = make("first", epochs=6, learning_rate=3e-3)
    train(opened(first))
    second = make("second", learning_rate=0.0)
    spec = json.loads((second / "spec.json").read_text())
    spec |= {"policy": str(first / "final"), "reference": str(policy)}
    (second / "spec.json").write_text(json.dumps(spec))
    train(opened(second))
    # Nothing was learnt, so what the first run ended with is seen from the first update on.
    expected = phase(first, "evaluate")[-1]["eval_rewards/margins"]
    assert phase(second, "evaluate")[-1]["eval_rewards/margins"] == pytest.approx(expected, abs=1e-4)
    assert result_of(second)["kl"] == pytest.approx(result_of(first)["kl"], abs=1e-4)


# ---- the judgments ------------------------------------------------------------------------------------------------


def read(rows: Sequence[dict[str, Any]], policy: Path, context: int | None = 96, **config: Any) -> Any:
    records = [PreferenceRecord.model_validate(row) for row in rows]
    return read_judgments(records, load_policy(policy).tokenizer, DPOConfig(**config), context)


def test_k_answers_are_all_their_pairs_each_with_its_share_of_one(policy: Path) -> None:
    rows = [judgment(5, ["a", "b", "c", "d"], [[2], [0, 3], [1]])]
    pairs = read(rows, policy).train.pairs
    # 2 beats the rest, 0 and 3 beat 1; 0 and 3 are level and left out, but keep their share.
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (0, 1),
        (2, 0),
        (2, 1),
        (2, 3),
        (3, 1),
    ]
    assert pairs.weight.tolist() == pytest.approx([1 / 6] * 5)
    halved = read(rows, policy, ties="half").train.pairs
    assert halved.weight.sum().item() == pytest.approx(1.0)
    assert halved.tied.tolist().count(True) == 1


def test_an_answer_judged_twice_is_one_row(policy: Path) -> None:
    data = read([judgment(5), judgment(5), judgment(6)], policy)
    assert len(data.rows) == 4
    assert data.train.count == 3
    assert data.rows[0].completion[-1] == load_policy(policy).tokenizer.eos_token_id


def test_what_says_nothing_is_left_out_and_counted(policy: Path) -> None:
    rows = [
        judgment(5),
        judgment(6, tiers=[[0, 1]]),
        judgment(7, both_bad=True, tiers=[[0, 1]]),
        judgment(8, [GOOD, GOOD]),
        judgment(9, [GOOD, " ".join([GOOD] * 30)]),
    ]
    data = read(rows, policy)
    assert data.left_out == {"too_long": 1, "identical": 1, "tied": 2}
    assert data.train.count == 1
    assert read(rows, policy, ties="half").train.count == 3
    # The judgments that are left are numbered from 0, so that batches can be drawn.
    assert sorted(set(read(rows, policy, ties="half").train.pairs.judgment.tolist())) == [0, 1, 2]


def test_an_empty_answer_is_an_answer(policy: Path) -> None:
    data = read([judgment(5, [GOOD, ""])], policy)
    assert [len(row.completion) for row in data.rows][1] == 1


@pytest.mark.parametrize(
    ("rows", "config", "message", "mend"),
    [
        ([judgment(5, tiers=[[0, 1]])], {}, "prefers one answer", "Judge more pairs"),
        ([judgment(0)], {}, "prefers one answer", "Judge more pairs"),
        ([judgment(5)], {"max_length": 8}, "more than 8 tokens", "Raise max_length"),
        ([], {}, "prefers one answer", "Judge more pairs"),
    ],
)
def test_nothing_to_learn_from_is_refused_with_its_mend(
    make: Make, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], config: Any, message: str, mend: str
) -> None:
    error = failure_of(make(rows=rows, **config), monkeypatch)
    assert error["kind"] == "data"
    assert message in error["message"]
    assert mend in error["mend"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"beta": 0}, "beta"),
        ({"loss": "kto"}, "loss"),
        ({"betta": 1}, "betta"),
        ({"max_tokens": 90}, "no prompt that the policy can answer"),
    ],
)
def test_an_impossible_configuration_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch, config: Any, told: str
) -> None:
    root = make(**config)
    assert told in failure_of(root, monkeypatch)["message"]
    assert not (root / "final").exists()


def failure_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(entry, "_log_to", lambda root: None)
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)
    assert entry.main([str(root)]) == 4
    error: dict[str, str] = json.loads((root / "error.json").read_text())
    return error


def test_a_policy_that_is_no_number_ends_the_run_before_its_first_update(
    make: Make, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = dpo.load_policy

    def poisoned(folder: Path) -> Any:
        made = load(folder)
        torch.nn.init.constant_(made.model.model.norm.weight, float("nan"))
        return made

    monkeypatch.setattr(dpo, "load_policy", poisoned)
    root = make()
    error = failure_of(root, monkeypatch)
    assert (error["kind"], "NaN" in error["message"]) == ("checkpoint", True)
    assert not (root / "metrics.jsonl").exists()


def test_a_reference_with_another_tokenizer_is_refused(make: Make, tmp_path: Path) -> None:
    other = tmp_path / "other"
    toy.make_policy(other, words="entirely different words in here")
    root = make()
    spec = json.loads((root / "spec.json").read_text())
    (root / "spec.json").write_text(json.dumps(spec | {"reference": str(other)}))
    with pytest.raises(RunFailure, match="other tokens"):
        train(opened(root))


# ---- cancel and kill -9 -------------------------------------------------------------------------------------------


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_file(root / "final" / "model.safetensors") for root in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "result.json").read_text() == (other / "result.json").read_text()
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_cancelled_run_goes_on_to_the_same_bits_and_reads_no_reference_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    whole, cancelled = make("whole", optimizer=optimizer), make("cancelled", optimizer=optimizer)
    train(opened(whole))
    run = opened(cancelled)
    log = run.log

    def stop_at_three(step: int, phase: str, **metrics: float) -> None:
        log(step, phase, **metrics)
        if step == 3:
            run.request_stop()

    monkeypatch.setattr(run, "log", stop_at_three)
    with pytest.raises(Cancelled):
        train(run)
    assert sorted(path.name for path in (cancelled / "checkpoints").iterdir()) == ["step-000000", "step-000003"]
    torch.rand(3)  # what the process did in between does not matter
    monkeypatch.setattr(dpo, "reference_logprobs", None)
    train(Run.open(cancelled))
    assert_same(whole, cancelled)


def test_a_stop_while_the_reference_reads_is_obeyed_and_costs_nothing(make: Make) -> None:
    whole, stopped = make("whole"), make("stopped")
    train(opened(whole))
    run = opened(stopped)
    run.request_stop()
    with pytest.raises(Cancelled):
        train(run)
    assert not (stopped / "checkpoints").exists()
    train(opened(stopped))
    assert_same(whole, stopped)


def start(root: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
    """app.training's own main, each heartbeat a little late, so that there is time to kill it."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(root)}
    with (root / "log.txt").open("ab") as log:
        command = [sys.executable, str(TOY), str(root), str(pause)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


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


def test_dpo_killed_between_two_checkpoints_ends_with_the_same_bits(make: Make) -> None:
    settings = {"epochs": 3, "checkpoint_every": 4, "schedule": "cosine"}
    whole, killed = make("whole", **settings), make("killed", **settings)
    assert start(whole).wait() == 0
    kill_at(killed, step=6, delay=0.02)
    assert not (killed / "final").exists()
    assert start(killed).wait() == 0
    assert "resumed from step 4" in (killed / "log.txt").read_text()
    assert_same(whole, killed)
    assert [row["step"] for row in phase(killed, "train")] == list(range(1, 10))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(4))
def test_dpo_killed_again_and_again_ends_with_the_same_bits(make: Make, trial: int) -> None:
    settings = {"epochs": 4, "checkpoint_every": 1 + trial % 3, "loss": ("dpo", "ipo")[trial % 2], "sft_weight": 0.1}
    whole, killed = make("whole", **settings), make("killed", **settings)
    assert start(whole).wait() == 0
    for step in (1 + trial, 5 + trial):
        kill_at(killed, step, delay=0.01 * trial)
    assert start(killed).wait() == 0
    assert_same(whole, killed)
