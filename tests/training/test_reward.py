"""Runs that learn a reward model: what they report, what they leave, and going on after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from app.core.configs import RewardConfig
from app.core.folders import write_folder
from app.core.records import PreferenceRecord, RunError, RunResult
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompt
from app.policy.reward_model import load_reward_model, load_reward_tokenizer
from app.policy.starter import make_starter, new_starter
from app.training.__main__ import main
from app.training.failures import RunFailure
from app.training.reward_data import read_comparisons
from app.training.run import Run

MakeRun = Callable[..., Path]
GOOD, BAD = (
    "Hello! I am sorry about the damage. Kind regards, Mia.",
    "Do not write again. Please stop wasting our time.",
)
PROBE = {"threads": 1, "micro_batch_size": 8, "checkpoint_every": 2, "newton_steps": 6}
HEAD = {"threads": 1, "kind": "head", "learning_rate": 3e-3, "epochs": 6, "batch_size": 4, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    write_folder(folder, lambda partial: make_starter(partial, "tiny"))
    return folder


def preference(i: int, tiers: list[list[int]], split: str = "train", **more: Any) -> dict[str, Any]:
    return {
        "judgment_id": f"j{i}",
        "comparison_id": f"c{i}",
        "prompt_id": f"p{i}",
        "prompt": [{"role": "user", "content": f"My order number is {1000 + i}. Where is my kettle?"}],
        "completions": [GOOD.replace("Mia", ["Mia", "Tom", "Leo"][i % 3]), BAD if i % 2 else BAD[:18]],
        "tiers": tiers,
        "annotator": "a",
        "split": split,
        **more,
    }


def demonstration(i: int) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Where is my lamp {i}?"}]
    return {"prompt_id": f"d{i}", "prompt": prompt, "completion": GOOD, "split": "train"}


TRAIN = [preference(i, [[0], [1]]) for i in range(24)]
HELD = [preference(i, [[0], [1]], "heldout") for i in range(24, 32)]
DATA = {"preferences.jsonl": TRAIN + HELD, "demonstrations.jsonl": [demonstration(i) for i in range(5)]}


def metrics(run: Path) -> dict[str, Any]:
    return RunResult.model_validate_json((run / "result.json").read_text()).metrics


@pytest.mark.parametrize("config", [PROBE, HEAD], ids=["probe", "head"])
def test_a_plain_preference_is_learnt_and_reported(make_run: MakeRun, policy: Path, config: dict[str, Any]) -> None:
    root = make_run(kind="reward", config=config, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    found = metrics(root)
    assert found["heldout_accuracy"] == 1.0
    assert (found["heldout_n"], found["pairs_train"]) == (8, 24)
    assert found["heldout_low"] == pytest.approx(0.6756, abs=1e-3)  # Wilson, 8 of 8
    assert found["train_accuracy"] == 1.0
    assert found["longer_wins"] == 1.0
    model, tokenizer = load_reward_model(root / "final"), load_reward_tokenizer(root / "final")
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "Where is my tent? My order number is 7777."}])
    good, bad = model.score([prompt] * 2, [encode_completion(tokenizer, text) for text in (GOOD, BAD)]).tolist()
    assert good > bad


def test_demonstrations_score_zero_and_compared_answers_spread_by_one(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=PROBE, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    model, tokenizer = load_reward_model(root / "final"), load_reward_tokenizer(root / "final")
    shown = [demonstration(i) for i in range(5)]
    rewards = model.score(
        [encode_prompt(tokenizer, d["prompt"]) for d in shown], [encode_completion(tokenizer, GOOD) for _ in shown]
    )
    assert rewards.mean().item() == pytest.approx(0.0, abs=1e-4)
    answers = [(r["prompt"], text) for r in TRAIN + HELD for text in r["completions"]]
    model.settings = model.settings.model_copy(update={"clip": 1e9})
    spread = model.score(
        [encode_prompt(tokenizer, p) for p, _ in answers], [encode_completion(tokenizer, t) for _, t in answers]
    )
    assert spread.std().item() == pytest.approx(1.0, abs=1e-3)


def test_the_critics_start_predicts_the_score_of_the_whole_answer(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=PROBE, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    model, tokenizer = load_reward_model(root / "final"), load_reward_tokenizer(root / "final")
    prompt = encode_prompt(tokenizer, TRAIN[0]["prompt"])
    values = {}
    for text in (GOOD, BAD):
        ids = torch.tensor([[*prompt, *encode_completion(tokenizer, text)]])
        values[text] = model.token_values(ids, torch.ones_like(ids))[0, -4].item()
    assert values[GOOD] > values[BAD]


@pytest.mark.parametrize("config", [PROBE, HEAD], ids=["probe", "head"])
def test_a_run_cut_off_at_any_step_ends_in_the_same_bits(
    make_run: MakeRun, policy: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run("whole", kind="reward", config=config, data=DATA, policy=str(policy))
    assert main([str(whole)]) == 0
    cut = make_run("cut", kind="reward", config=config, data=DATA, policy=str(policy))
    calls = {"left": 0}
    end_step = Run.end_step

    def dies(self: Run[Any], *arguments: Any) -> None:
        end_step(self, *arguments)
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_step", dies)
    for steps in (3, 7, 5):
        calls["left"] = steps
        assert main([str(cut)]) == 4
    calls["left"] = 10**9
    assert main([str(cut)]) == 0
    for name in ("model.safetensors", "reward.safetensors"):
        if (whole / "final" / name).exists():
            one, two = load_file(whole / "final" / name), load_file(cut / "final" / name)
            assert all(torch.equal(one[key], two[key]) for key in one)
    assert metrics(whole) == metrics(cut)
    steps_logged = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps_logged == [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]


def test_a_head_on_the_last_token_loads_plainly(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=HEAD, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    plain = AutoModelForSequenceClassification.from_pretrained(root / "final")
    assert plain.config.num_labels == 1
    assert plain.config.pad_token_id is not None


def test_the_order_of_the_judgments_in_the_file_decides_nothing(make_run: MakeRun, policy: Path) -> None:
    scores = []
    for name, rows in (("one", TRAIN + HELD), ("two", (TRAIN + HELD)[::-1])):
        data = DATA | {"preferences.jsonl": rows}
        root = make_run(name, kind="reward", config=PROBE, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        scores.append(load_file(root / "final" / "reward.safetensors")["weight"])
    assert torch.allclose(scores[0], scores[1], atol=1e-4)


def test_ties_are_learnt_as_a_threshold(make_run: MakeRun, policy: Path) -> None:
    tied = [preference(i, [[0, 1]], both_bad=i % 2 == 0) for i in range(40, 52)]
    data = DATA | {"preferences.jsonl": TRAIN + HELD + tied}
    root = make_run(kind="reward", config=PROBE, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    threshold = load_reward_model(root / "final").settings.tie_threshold
    assert threshold is not None
    assert threshold > 0.1
    assert metrics(root)["pairs_train"] == 24


def test_a_ranking_of_three_becomes_its_pairs(make_run: MakeRun, policy: Path) -> None:
    three = [preference(i, [[0], [2], [1]], completions=[GOOD, BAD, "Your kettle, noted."]) for i in range(60, 72)]
    data = DATA | {"preferences.jsonl": three + HELD}
    root = make_run(kind="reward", config=PROBE, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    assert metrics(root)["pairs_train"] == 36


def test_without_held_out_judgments_there_is_no_held_out_figure(make_run: MakeRun, policy: Path) -> None:
    data = DATA | {"preferences.jsonl": TRAIN}
    root = make_run(kind="reward", config=PROBE, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    found = metrics(root)
    assert (found["heldout_accuracy"], found["heldout_n"], found["longer_wins"]) == (None, 0, None)


def test_held_out_judgments_teach_nothing(make_run: MakeRun, policy: Path) -> None:
    weights = []
    for name, held in (("one", HELD), ("two", [{**row, "tiers": [[1], [0]]} for row in HELD])):
        data = DATA | {"preferences.jsonl": TRAIN + held}
        root = make_run(name, kind="reward", config=PROBE, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        weights.append(load_file(root / "final" / "reward.safetensors")["weight"])
        assert metrics(root)["heldout_accuracy"] == (1.0 if name == "one" else 0.0)
    assert torch.equal(weights[0], weights[1])


def test_only_ties_are_refused_with_a_reason(make_run: MakeRun, policy: Path) -> None:
    data = DATA | {"preferences.jsonl": [preference(0, [[0, 1]])]}
    root = make_run(kind="reward", config=PROBE, data=data, policy=str(policy))
    assert main([str(root)]) == 4
    error = RunError.model_validate_json((root / "error.json").read_text())
    assert (error.kind, error.mend) == ("data", "Judge more pairs.")


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays_whole() -> None:
    tokenizer = new_starter("tiny").tokenizer
    long = preference(0, [[0], [1]])
    long["prompt"] = [{"role": "user", "content": "Where is my kettle? " * 60}]
    record = PreferenceRecord.model_validate(long)
    data = read_comparisons([record], [], tokenizer, RewardConfig(max_length=64), seed=0)
    assert {len(a.prompt) + len(a.completion) for a in data.answers} == {64}
    assert data.answers[0].completion == encode_completion(tokenizer, GOOD)
    assert data.answers[0].prompt == encode_prompt(tokenizer, record.prompt)[-len(data.answers[0].prompt) :]


def test_an_answer_judged_twice_is_encoded_once() -> None:
    tokenizer = new_starter("tiny").tokenizer
    twice = [
        PreferenceRecord.model_validate(preference(0, t, annotator=a))
        for t, a in (([[0], [1]], "a"), ([[1], [0]], "b"))
    ]
    data = read_comparisons(twice, [], tokenizer, RewardConfig(), seed=0)
    assert len(data.answers) == 2
    assert data.train.pairs.first.tolist() == [0, 1]
    assert data.train.human_agreement() == (0.0, 1)


def test_no_train_judgment_is_a_failure_of_the_data() -> None:
    held = PreferenceRecord.model_validate(preference(0, [[0], [1]], Split.HELDOUT))
    with pytest.raises(RunFailure, match="No judgment on a train prompt"):
        read_comparisons([held], [], new_starter("tiny").tokenizer, RewardConfig(), seed=0)
