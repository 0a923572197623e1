"""Judgments that cannot teach a score are refused before anything is computed, with the reason and the mend."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.core.configs import RewardConfig
from app.core.folders import write_folder
from app.core.records import PreferenceRecord, RunError, RunResult
from app.policy.checkpoint import save_policy
from app.policy.starter import make_starter, new_starter
from app.training.__main__ import main
from app.training.failures import RunFailure
from app.training.reward_checks import check_judgments
from app.training.reward_data import read_comparisons
from tests.training.judgments import DATA, GOOD, HELD, TRAIN, preference

MakeRun = Callable[..., Path]
CHEAP = {"threads": 1, "newton_steps": 2, "prior": 1.0, "contrast_prompts": 0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    write_folder(folder, lambda partial: make_starter(partial, "tiny"))
    return folder


def records(rows: list[dict[str, Any]]) -> list[PreferenceRecord]:
    return [PreferenceRecord.model_validate(row) for row in rows]


def refusal(rows: list[dict[str, Any]], **config: Any) -> RunError:
    with pytest.raises(RunFailure) as failure:
        check_judgments(records(rows), RewardConfig(**config))
    return failure.value.error


def test_good_judgments_pass_and_need_no_held_out_ones_where_none_are_asked_for() -> None:
    check_judgments(records(TRAIN + HELD), RewardConfig())
    check_judgments(records(TRAIN), RewardConfig(require_heldout=False))


def test_ties_alone_teach_nothing() -> None:
    error = refusal([preference(i, [[0, 1]]) for i in range(5)] + HELD)
    assert (error.kind, error.mend) == ("data", "Judge more pairs.")
    assert "tie" in error.message


def test_votes_that_cancel_everywhere_teach_nothing() -> None:
    both = [preference(i, t, annotator=a) for i in range(5) for t, a in (([[0], [1]], "a"), ([[1], [0]], "b"))]
    assert "cancel" in refusal(both + HELD).message
    same = [preference(i, [[0], [1]], completions=[GOOD, GOOD]) for i in range(5)]
    assert "read the same" in refusal(same + HELD).message
    check_judgments(records([*both, preference(0, [[0], [1]], annotator="c"), *HELD]), RewardConfig())


def test_nothing_to_measure_on_is_refused() -> None:
    error = refusal(TRAIN)
    assert (error.kind, "No judgment is on a held-out prompt" in error.message) == ("data", True)
    assert "require_heldout=false" in error.mend


def test_held_out_ties_alone_are_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    check_judgments(records(TRAIN + [preference(i, [[0, 1]], "heldout") for i in range(24, 28)]), RewardConfig())
    assert "all 4 held-out judgments are ties" in caplog.text


def test_a_prompt_on_both_sides_of_the_split_is_refused() -> None:
    leak = preference(3, [[0], [1]], "heldout", judgment_id="leak")
    error = refusal([*TRAIN, *HELD, leak])
    assert (error.kind, "leak" in error.message) == ("data", True)


@pytest.mark.parametrize("tiers", [[[0]], [[0], [2]], [[0, 1], [1]], [[0], [1], [2]]])
def test_tiers_that_do_not_rank_each_answer_once_are_refused(tiers: list[list[int]]) -> None:
    error = refusal([*TRAIN, *HELD, preference(90, tiers)])
    assert (error.kind, "j90" in error.message) == ("data", True)


def test_preferences_that_are_all_for_the_first_answer_are_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    check_judgments(records(TRAIN + HELD), RewardConfig())
    assert "stands first" in caplog.text
    caplog.clear()
    check_judgments(records([*TRAIN, preference(99, [[1], [0]]), *HELD]), RewardConfig())
    assert not caplog.text


def test_a_margin_from_strengths_that_nobody_gave_is_refused() -> None:
    assert refusal(TRAIN + HELD, strength_margin=1.0).kind == "config"
    check_judgments(records([*TRAIN, preference(99, [[0], [1]], strength=2), *HELD]), RewardConfig(strength_margin=1.0))


@pytest.mark.parametrize(
    "bad",
    [
        {"completions": [GOOD, " \n"]},
        {"prompt": [{"role": "user", "content": ""}]},
        {"completions": [GOOD, "Kettle! " * 70]},
    ],
    ids=["empty answer", "empty prompt", "long answer"],
)
def test_rows_that_cannot_be_read_are_refused_or_left_out(bad: dict[str, Any], caplog: Any) -> None:
    tokenizer, rows = new_starter("tiny").tokenizer, [*TRAIN, *HELD, preference(77, [[0], [1]], **bad)]
    with pytest.raises(RunFailure) as failure:
        read_comparisons(records(rows), [], tokenizer, RewardConfig(max_length=64), seed=0)
    error = failure.value.error
    assert (error.kind, "1 of 33" in error.message, "j77" in error.message) == ("data", True, True)
    assert "bad_rows=drop" in error.mend
    data = read_comparisons(records(rows), [], tokenizer, RewardConfig(max_length=64, bad_rows="drop"), seed=0)
    assert len(data.train.records) == 24
    assert "1 of 33 judgments are left out" in caplog.text


def test_the_mend_of_a_long_answer_is_long_enough() -> None:
    tokenizer, rows = (
        new_starter("tiny").tokenizer,
        [*TRAIN, preference(77, [[0], [1]], completions=["Hm. " * 90, "No."])],
    )
    with pytest.raises(RunFailure) as failure:
        read_comparisons(records(rows), [], tokenizer, RewardConfig(max_length=64), seed=0)
    length = int(failure.value.error.mend.split("at best to ")[1].split()[0])
    read_comparisons(records(rows), [], tokenizer, RewardConfig(max_length=length), seed=0)
    with pytest.raises(RunFailure, match=f"{length - 1} tokens"):
        read_comparisons(records(rows), [], tokenizer, RewardConfig(max_length=length - 1), seed=0)


def test_the_policys_context_bounds_rows_too() -> None:
    rows = [{**row, "prompt": [{"role": "user", "content": f"{i} Where is it? " * 30}]} for i, row in enumerate(TRAIN)]
    data = read_comparisons(records(rows), [], new_starter("tiny").tokenizer, RewardConfig(), seed=0, context=80)
    assert {len(a.prompt) + len(a.completion) for a in data.answers} == {80}
    longest = max(len(a.completion) for a in data.answers)
    assert max(len(prompt) for prompt in data.contrast) == 80 - longest


def test_what_is_left_after_bad_rows_are_dropped_is_checked_again(make_run: MakeRun, policy: Path) -> None:
    held = [{**row, "completions": [GOOD, ""]} for row in HELD]
    data = DATA | {"preferences.jsonl": TRAIN + held}
    root = make_run(kind="reward", config=CHEAP | {"bad_rows": "drop"}, data=data, policy=str(policy))
    assert main([str(root)]) == 4
    assert "held-out prompt" in RunError.model_validate_json((root / "error.json").read_text()).message


@pytest.mark.parametrize("kind", ["probe", "head"])
def test_a_policy_of_nans_is_refused_before_the_first_step(make_run: MakeRun, tmp_path: Path, kind: str) -> None:
    broken = new_starter("tiny")
    broken.model.get_input_embeddings().weight.data[7:400] = torch.nan
    write_folder(tmp_path / "broken", lambda partial: save_policy(partial, *broken))
    root = make_run(kind="reward", config=CHEAP | {"kind": kind}, data=DATA, policy=str(tmp_path / "broken"))
    assert main([str(root)]) == 4
    error = RunError.model_validate_json((root / "error.json").read_text())
    assert (error.kind, "weights that are NaN" in error.message) == ("checkpoint", True)
    assert not (root / "final").exists()
    assert not list((root / "checkpoints").glob("*"))


def test_a_refused_run_goes_on_once_its_data_is_mended(make_run: MakeRun, policy: Path) -> None:
    data = DATA | {"preferences.jsonl": [*TRAIN, *HELD, preference(77, [[0], [1]], completions=[GOOD, ""])]}
    root = make_run(kind="reward", config=CHEAP, data=data, policy=str(policy))
    assert main([str(root)]) == 4
    spec = json.loads((root / "spec.json").read_text())
    (root / "spec.json").write_text(json.dumps({**spec, "config": CHEAP | {"bad_rows": "drop"}}))
    assert main([str(root)]) == 0
    assert not (root / "error.json").exists()
    assert RunResult.model_validate_json((root / "result.json").read_text()).metrics["pairs_train"] == 24


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "probe", "pooling": "last"},
        {"kind": "probe", "initialise": "scratch"},
        {"rankings": "plackett-luce", "label_smoothing": 0.1},
        {"label_smoothing": 0.5},
        {"strength_margin": -1},
        {"strength_margin": float("inf")},
        {"learning_rate": float("nan")},
        {"calibration_share": 0.9},
        {"members": 0},
        {"margin": 1},
    ],
)
def test_an_impossible_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RewardConfig(**config)


def test_a_probe_by_size_cannot_pool_at_the_last_token(make_run: MakeRun, policy: Path) -> None:
    root = make_run(kind="reward", config=CHEAP | {"pooling": "last"}, data=DATA, policy=str(policy))
    assert main([str(root)]) == 4
    error = RunError.model_validate_json((root / "error.json").read_text())
    assert (error.kind, "kind=head" in error.mend) == ("config", True)
