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
from app.core.records import PreferenceRecord, RewardReport, RunError, RunResult
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompt
from app.policy.reward_model import load_reward_model, load_reward_tokenizer, pack
from app.policy.starter import make_starter, new_starter
from app.training import reward_head, reward_report
from app.training.__main__ import main
from app.training.failures import RunFailure
from app.training.reward_data import Side, read_comparisons
from app.training.reward_head import learnt_units
from app.training.run import Run
from tests.training.judgments import BAD, DATA, GOOD, HELD, TRAIN, demonstration, preference

MakeRun = Callable[..., Path]
PROBE = {"threads": 1, "micro_batch_size": 8, "checkpoint_every": 2, "newton_steps": 6}
HEAD = {"threads": 1, "kind": "head", "learning_rate": 3e-3, "epochs": 6, "batch_size": 4, "checkpoint_every": 5}
HEADS = HEAD | {"members": 3, "ties": "rao-kupper", "micro_batch_size": 4}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    write_folder(folder, lambda partial: make_starter(partial, "tiny"))
    return folder


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


def test_demonstrations_score_zero_and_train_answers_spread_by_one(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=PROBE, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    model, tokenizer = load_reward_model(root / "final"), load_reward_tokenizer(root / "final")
    shown = [demonstration(i) for i in range(5)]
    rewards = model.score(
        [encode_prompt(tokenizer, d["prompt"]) for d in shown], [encode_completion(tokenizer, GOOD) for _ in shown]
    )
    assert rewards.mean().item() == pytest.approx(0.0, abs=1e-4)
    answers = [(r["prompt"], text) for r in TRAIN for text in r["completions"]]
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
        values[text] = model.values_at(ids, torch.tensor([0]), torch.tensor([ids.shape[1] - 4])).item()
    assert values[GOOD] > values[BAD]


@pytest.mark.parametrize("config", [PROBE, HEAD, HEADS], ids=["probe", "head", "heads"])
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
    assert (whole / "report.json").read_text() == (cut / "report.json").read_text()
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


def test_without_held_out_judgments_a_run_is_refused_or_has_no_held_out_figure(make_run: MakeRun, policy: Path) -> None:
    data = DATA | {"preferences.jsonl": TRAIN}
    refused = make_run("refused", kind="reward", config=PROBE, data=data, policy=str(policy))
    assert main([str(refused)]) == 4
    error = RunError.model_validate_json((refused / "error.json").read_text())
    assert (error.kind, "require_heldout=false" in error.mend) == ("data", True)
    config = PROBE | {"require_heldout": False}
    root = make_run(kind="reward", config=config, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    found = metrics(root)
    assert (found["heldout_accuracy"], found["heldout_n"], found["longer_wins"]) == (None, 0, None)
    assert (found["ece"], found["model_prefers_longer"]) == (None, None)


def test_held_out_judgments_and_answers_teach_nothing(make_run: MakeRun, policy: Path) -> None:
    turned = [{**row, "tiers": [[1], [0]]} for row in HELD]
    others = [{**row, "completions": [f"{text} {GOOD * 2}" for text in row["completions"]]} for row in HELD]
    models, fitted = {}, []
    for name, held in (("one", HELD), ("two", turned), ("three", others)):
        data = DATA | {"preferences.jsonl": TRAIN + held}
        root = make_run(name, kind="reward", config=PROBE, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        models[name] = load_file(root / "final" / "reward.safetensors")
        settings = load_reward_model(root / "final").settings
        assert settings.calibration is not None
        fitted.append((settings.offset, settings.scale, settings.calibration.temperature))
    assert metrics(root.parent / "one")["heldout_accuracy"] == 1.0
    assert metrics(root.parent / "two")["heldout_accuracy"] == 0.0
    assert all(torch.equal(models["one"][part], models["two"][part]) for part in ("weight", "value", "value_bias"))
    assert fitted[0] == fitted[1]
    # Other held-out answers share batches with the train ones, and so may change the last bits of what is read of them.
    assert all(
        torch.allclose(models["one"][part], models["three"][part], atol=1e-4, rtol=1e-3)
        for part in ("weight", "value", "value_bias")
    )
    assert fitted[0] == pytest.approx(fitted[2], rel=1e-3)


def test_the_unit_of_a_heads_score_has_not_seen_held_out_answers(make_run: MakeRun, policy: Path) -> None:
    units = []
    for name, held in (("one", HELD), ("two", [{**row, "completions": [BAD * 3, GOOD * 3]} for row in HELD])):
        data = DATA | {"preferences.jsonl": TRAIN + held}
        root = make_run(name, kind="reward", config=HEAD | {"epochs": 1}, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        settings = load_reward_model(root / "final").settings
        units.append((settings.offset, settings.scale))
    assert units[0] == pytest.approx(units[1], rel=1e-4)


def votes(split: str, numbers: range) -> list[dict[str, Any]]:
    """Three people judge each comparison; of every third one, one of them says the opposite."""
    rows = []
    for i in numbers:
        for n, who in enumerate("abc"):
            wrong = i % 3 == 0 and n == 2
            rows.append(
                preference(i, [[1], [0]] if wrong else [[0], [1]], split, annotator=who, judgment_id=f"j{i}{who}")
                | {"strength": 1 if wrong else 4}
            )
    return rows


def test_the_report_says_where_the_model_is_right_counting_comparisons(make_run: MakeRun, policy: Path) -> None:
    data = DATA | {"preferences.jsonl": votes("train", range(24)) + votes("heldout", range(24, 32))}
    root = make_run(kind="reward", config=PROBE | {"votes": "averaged"}, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    found, report = metrics(root), RewardReport.model_validate_json((root / "report.json").read_text())
    # Of 8 held-out comparisons 24, 27 and 30 have one vote of three against: (5 + 3 x 2/3) / 8.
    assert found["heldout_accuracy"] == pytest.approx(0.875)
    assert (found["heldout_n"], found["judgments_train"]) == (8, 72)
    slices = {(one.slice, one.value): one for one in report.slices}
    assert slices["all", "all"].accuracy == pytest.approx(0.875)
    assert (slices["all", "all"].comparisons, slices["all", "all"].pairs) == (8, 24)
    assert (slices["all", "all"].low, slices["all", "all"].high) == (found["heldout_low"], found["heldout_high"])
    assert slices["strength", "4"].accuracy == 1.0
    assert slices["strength", "1"].accuracy == 0.0
    assert (slices["strength", "1"].comparisons, slices["strength", "1"].pairs) == (3, 3)
    assert slices["annotator", "a"].accuracy == 1.0
    assert slices["annotator", "c"].accuracy == pytest.approx(5 / 8)
    assert slices["agreement", "unanimous"].accuracy == 1.0
    assert slices["agreement", "split"].accuracy == pytest.approx(2 / 3)
    assert slices["chosen", "longer"].accuracy == 1.0
    assert slices["chosen", "shorter"].accuracy == 0.0
    assert (found["longer_wins"], found["model_prefers_longer"]) == (pytest.approx(0.875), 1.0)
    assert found["human_agreement"] == pytest.approx((5 * 3 + 3 * 1) / 24)
    assert sum(one.pairs for one in report.reliability) == 24


@pytest.mark.parametrize("config", [PROBE, HEAD | {"epochs": 1}, HEAD | {"calibration_share": 0.5}])
def test_a_temperature_is_fitted_without_held_out_judgments(
    make_run: MakeRun, policy: Path, config: dict[str, Any]
) -> None:
    # Every fourth judgment is wrong, so no honest model is sure.
    noisy = [preference(i, [[1], [0]] if i % 4 == 0 else [[0], [1]]) for i in range(96)]
    held = [preference(i, [[1], [0]] if i % 4 == 0 else [[0], [1]], "heldout") for i in range(96, 116)]
    data = DATA | {"preferences.jsonl": noisy + held}
    root = make_run(kind="reward", config=config, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    found, calibration = metrics(root), load_reward_model(root / "final").settings.calibration
    assert calibration is not None
    assert calibration.temperature == found["temperature"]
    assert (calibration.ece, calibration.ece_calibrated) == (found["ece"], found["ece_calibrated"])
    kinds = {"probe": "cross-validation", "kept": "kept back", "pass": "single pass"}
    kind = "kept" if "calibration_share" in config else "pass" if "kind" in config else "probe"
    assert calibration.fitted_on == kinds[kind]
    assert calibration.pairs == 96 if kind == "probe" else 20 <= calibration.pairs < 96
    if kind == "probe":  # a prior keeps it honest, wrong labels and all
        assert 0.5 < calibration.temperature < 2
    if kind == "kept":  # overfitted by far: the temperature takes it back
        assert calibration.temperature > 1
        assert found["heldout_nll_calibrated"] < found["heldout_nll"]


def test_judgments_kept_back_teach_nothing_but_the_temperature(make_run: MakeRun, policy: Path) -> None:
    config = HEAD | {"calibration_share": 0.4, "epochs": 1}
    weights, temperatures = [], []
    for name, turned in (("one", False), ("two", True)):
        rows = [preference(i, [[0], [1]]) for i in range(80)]
        kept = set(range(80)) - set(learnt_units(side_of(rows), RewardConfig(calibration_share=0.4), seed=7))
        for i in kept if turned else ():
            rows[i] = rows[i] | {"tiers": [[1], [0]]}
        held = [preference(i, [[0], [1]], "heldout") for i in range(80, 90)]
        data = DATA | {"preferences.jsonl": rows + held}
        root = make_run(name, kind="reward", config=config, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        weights.append(load_file(root / "final" / "model.safetensors"))
        temperatures.append(metrics(root)["temperature"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert temperatures[0] < temperatures[1] == pytest.approx(10.0)


def test_a_single_pass_foresees_what_the_model_says_before_it_learns(
    make_run: MakeRun, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def capture(foreseen: torch.Tensor, pairs: Any, how: str) -> None:
        seen.update(foreseen=foreseen)

    monkeypatch.setattr(reward_head, "calibrated", capture)
    finish = reward_head.finish

    def keep(*arguments: Any) -> None:
        data, scored = arguments[3], arguments[4]
        seen.update(final=reward_report.margins(data.train, scored.answers))
        finish(*arguments)

    monkeypatch.setattr(reward_head, "finish", keep)
    # A model that never changes foresees exactly what it ends with.
    config = HEAD | {"epochs": 1, "learning_rate": 0.0}
    root = make_run(kind="reward", config=config, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    known = ~seen["foreseen"].isnan()
    assert int(known.sum()) == 8  # the last two of six batches of four
    assert torch.allclose(seen["foreseen"][known], seen["final"][known], atol=1e-6)


def test_each_member_learns_from_the_judgments_that_it_drew(
    make_run: MakeRun, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first half of the judgments prefers one answer, the second half the other; each member draws one half.
    rows = [preference(i, [[0], [1]] if i < 16 else [[1], [0]]) for i in range(32)]
    halves = torch.tensor([[2.0] * 16 + [0.0] * 16, [0.0] * 16 + [2.0] * 16], dtype=torch.float64)
    monkeypatch.setattr(reward_head, "drawn", lambda units, members, seed: halves)
    monkeypatch.setattr(reward_head, "lr_factor", lambda *_: 1.0)
    data = DATA | {"preferences.jsonl": rows + [preference(i, [[0], [1]], "heldout") for i in range(40, 44)]}
    config = HEAD | {"members": 2, "epochs": 10, "pooling": "mean"}
    root = make_run(kind="reward", config=config, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    model, tokenizer = load_reward_model(root / "final"), load_reward_tokenizer(root / "final")
    prompt = encode_prompt(tokenizer, TRAIN[0]["prompt"])
    packed = pack([prompt] * 2, [encode_completion(tokenizer, text) for text in (GOOD, BAD)], model.pad_id)
    with torch.no_grad():
        good, bad = model.members(*packed).T
    assert good[0] > bad[0]
    assert good[1] < bad[1]


def side_of(rows: list[dict[str, Any]]) -> Side:
    records = [PreferenceRecord.model_validate(row) for row in rows]
    return read_comparisons(records, [], new_starter("tiny").tokenizer, RewardConfig(), seed=0).train


def test_after_several_passes_a_head_has_no_temperature(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=HEAD, data=DATA, policy=str(policy))
    assert main([str(root)]) == 0
    assert load_reward_model(root / "final").settings.calibration is None
    assert "temperature" not in metrics(root)


@pytest.mark.parametrize(
    "config",
    [
        PROBE | {"strength_margin": 1.0},
        PROBE | {"label_smoothing": 0.1},
        PROBE | {"rankings": "plackett-luce"},
        HEAD | {"strength_margin": 1.0},
        HEAD | {"label_smoothing": 0.1},
        HEAD | {"rankings": "plackett-luce", "members": 2},
    ],
)
def test_every_loss_learns_a_plain_preference(make_run: MakeRun, policy: Path, config: dict[str, Any]) -> None:
    rows = [row | {"strength": 1 + i % 4} for i, row in enumerate(TRAIN)]
    three = [preference(i, [[0], [2], [1]], completions=[GOOD, BAD, "Your kettle, noted."]) for i in range(60, 72)]
    data = DATA | {"preferences.jsonl": rows + three + HELD}
    root = make_run(kind="reward", config=config, data=data, policy=str(policy))
    assert main([str(root)]) == 0
    assert metrics(root)["heldout_accuracy"] == 1.0
    assert metrics(root)["pairs_train"] == 24 + 36


def test_a_margin_pulls_scores_apart_and_smoothing_together(make_run: MakeRun, policy: Path) -> None:
    rows = [row | {"strength": 4} for row in TRAIN]
    spread = {}
    for name, more in (("plain", {}), ("margin", {"strength_margin": 3.0}), ("smooth", {"label_smoothing": 0.3})):
        data = DATA | {"preferences.jsonl": rows + HELD}
        root = make_run(name, kind="reward", config=PROBE | {"prior": 1.0} | more, data=data, policy=str(policy))
        assert main([str(root)]) == 0
        spread[name] = json.loads((root / "metrics.jsonl").read_text().splitlines()[-1])["margin"]
    assert spread["smooth"] < spread["plain"] < spread["margin"]


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
