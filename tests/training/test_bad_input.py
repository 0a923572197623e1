"""What cannot be trained on is refused before the first step, by every kind of run, with its reason and its mend."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from app.core.configs import CONFIGS
from app.core.folders import write_folder
from app.core.records import RunError
from app.core.vocabulary import RunKind
from app.policy.checkpoint import load_policy
from app.policy.reward_model import HeadReward, ProbeReward, RewardSettings, save_reward_model
from app.policy.starter import make_starter
from app.training import __main__ as entry
from app.training import dpo, memory, networks, reward, sft
from tests.training import test_dpo, test_ppo_options, test_reward, test_sft
from tests.training import toy_ppo as toy
from tests.training.judgments import DATA

Make = Callable[..., Path]
Change = Callable[[Path], object]
SFT = test_sft.SMALL | {"max_steps": 2, "curriculum": 0.0, "eval_rows": 2, "sample_prompts": 1}
CONFIG: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "head": test_reward.HEAD | {"epochs": 1},
    "probe": test_reward.PROBE,
    "dpo": test_dpo.SMALL | {"epochs": 1},
    "ppo": test_ppo_options.SMALL | {"iterations": 1},
}
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "sft": {"demonstrations.jsonl": [json.loads(r.model_dump_json()) for r in test_sft.RECORDS[:20]]},
    "head": DATA,
    "probe": DATA,
    "dpo": {"preferences.jsonl": test_dpo.judgments(), "prompts.jsonl": toy.prompt_rows()},
    "ppo": {"prompts.jsonl": toy.prompt_rows()},
}
LEARNT = {
    "sft": "demonstrations.jsonl",
    "head": "preferences.jsonl",
    "probe": "preferences.jsonl",
    "dpo": "preferences.jsonl",
    "ppo": "prompts.jsonl",
}
KINDS = list(CONFIG)
JUDGED = ["head", "probe", "dpo"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`starter`, `policy`, and `reward`, a probe that reads `policy`."""
    root = tmp_path_factory.mktemp("models")
    write_folder(root / "starter", lambda partial: make_starter(partial, "tiny"))
    toy.make_policy(root / "policy")
    policy = load_policy(root / "policy")
    settings = RewardSettings(kind="probe", pooling="mean", layers=[0, 2], contrast=[[5, 6]])
    (root / "reward").mkdir()
    save_reward_model(root / "reward", ProbeReward(settings, policy.model), policy.tokenizer)
    return root


@pytest.fixture
def make(make_run: Make, models: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A run of a kind; `rows` of what it learns from, other folders, and configuration."""
    monkeypatch.setattr(entry, "_log_to", lambda root: None)
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)

    def build(kind: str, rows: Any = None, folders: dict[str, Path] | None = None, **config: Any) -> Path:
        data = ROWS[kind] | ({LEARNT[kind]: rows} if rows is not None else {})
        named = {"policy": models / ("starter" if kind == "sft" else "policy")}
        named |= {"reward_model": models / "reward"} if kind == "ppo" else {}
        loop = "reward" if kind in ("head", "probe") else kind
        spec = {name: str(folder) for name, folder in (named | (folders or {})).items()}
        return make_run(kind=loop, config=CONFIG[kind] | config, data=data, **spec)

    return build


def refused(root: Path) -> RunError:
    """The error of a run that takes no step, and leaves nothing that stands in the way of another start."""
    assert entry.main([str(root)]) == 4
    error = RunError.model_validate_json((root / "error.json").read_text())
    assert error.kind != "internal", error.message
    assert len(error.mend) > 15
    assert "Correct the run's inputs" not in error.mend, "says nothing that helps"
    for made in ("metrics.jsonl", "final", "result.json"):
        assert not (root / made).exists()
    assert not list((root / "checkpoints").glob("step-*"))
    return error


def broken(models: Path, tmp_path: Path, change: Change, name: str = "policy") -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(models / name, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    change(folder)
    return folder


def edit(name: str, **values: Any) -> Change:
    """Sets keys of a JSON file, or takes them away where the value is None."""

    def change(folder: Path) -> None:
        before = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in before.items() if v is not None}))

    return change


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit("tokenizer_config.json", chat_template=None)(folder)


def padded_with_the_end(folder: Path) -> None:
    end = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    edit("tokenizer_config.json", pad_token=end)(folder)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def poisoned(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if "norm" in name)[...] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def torn(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


BASES: dict[str, tuple[Change, str, str]] = {
    "no chat template": (no_template, "config", "has no chat template"),
    "pads with the end": (padded_with_the_end, "config", "pads with its end-of-sequence token"),
    "no tokenizer": (no_tokenizer, "config", "has no tokenizer"),
    "NaN weights": (poisoned, "checkpoint", "NaN"),
    "torn weights": (torn, "checkpoint", "cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "config", "no weights in safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config", "config.json cannot be read"),
    "unknown architecture": (edit("config.json", model_type="nonesuch"), "config", "cannot be loaded"),
    "another shape": (edit("config.json", num_hidden_layers=3), "config", "incomplete"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
def test_a_base_that_cannot_serve_is_refused_and_another_goes_on(
    make: Make, models: Path, tmp_path: Path, kind: str, name: str
) -> None:
    change, error_kind, message = BASES[name]
    folder = broken(models, tmp_path, change)
    root = make(kind, folders={"policy": folder})
    error = refused(root)
    assert error.kind == error_kind
    assert message in error.message
    if name == "NaN weights":
        shutil.rmtree(folder)
        shutil.copytree(models / "policy", folder)
        assert entry.main([str(root)]) == 0
        assert not (root / "error.json").exists()


@pytest.mark.parametrize("kind", ["dpo", "ppo"])
@pytest.mark.parametrize("name", ["NaN weights", "torn weights", "no tokenizer"])
def test_a_reference_that_cannot_serve_is_refused(
    make: Make, models: Path, tmp_path: Path, kind: str, name: str
) -> None:
    change, error_kind, message = BASES[name]
    error = refused(make(kind, folders={"reference": broken(models, tmp_path, change)}))
    assert error.kind == error_kind
    assert message in error.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (poisoned, "NaN"),
        (torn, "cannot be read"),
        (no_tokenizer, "no tokenizer"),
        (lambda folder: (folder / "reward.json").unlink(), "is not a reward model"),
        (lambda folder: (folder / "reward.json").write_text("{}"), "is not a reward model"),
        (lambda folder: (folder / "reward.safetensors").unlink(), "does not fit"),
        (lambda folder: (folder / "reward.safetensors").write_bytes(b"x" * 50), "cannot be read"),
        (lambda folder: shutil.rmtree(folder), "The reward model is missing"),
    ],
    ids=["NaN", "torn", "no tokenizer", "no settings", "empty settings", "no score", "torn score", "gone"],
)
def test_a_reward_model_that_cannot_serve_is_refused(
    make: Make, models: Path, tmp_path: Path, change: Change, message: str
) -> None:
    folder = broken(models, tmp_path, change, "reward")
    assert message in refused(make("ppo", folders={"reward_model": folder})).message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: edit("config.json", model_type="unheard-of")(folder), "cannot be loaded"),
        (lambda folder: edit("config.json", num_hidden_layers=3)(folder), "is missing from its weights"),
        (lambda folder: without(folder / "model.safetensors", "score.weight"), "score.weight is missing"),
    ],
    ids=["unknown type", "another shape", "no score"],
)
def test_a_reward_head_that_cannot_serve_is_refused(
    make: Make, models: Path, tmp_path: Path, change: Change, message: str
) -> None:
    policy = load_policy(models / "policy")
    body = AutoModelForSequenceClassification.from_pretrained(models / "policy", num_labels=1, dtype=torch.float32)
    head = HeadReward(RewardSettings(), body)
    write_folder(tmp_path / "head", lambda folder: save_reward_model(folder, head, policy.tokenizer))
    (tmp_path / "head" / "manifest.json").unlink()
    change(tmp_path / "head")
    error = refused(make("ppo", folders={"reward_model": tmp_path / "head"}))
    assert message in error.message
    assert error.mend


def without(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_folder_to_start_from_a_run_is_refused(make: Make, tmp_path: Path, kind: str) -> None:
    error = refused(make(kind, folders={"policy": tmp_path / "nowhere"}))
    assert (error.kind, "The policy is missing" in error.message) == ("config", True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_cannot_fit_into_memory_is_refused_before_anything_is_loaded(
    make: Make, models: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    weights = memory.stored_parameters(models / ("starter" if kind == "sft" else "policy"))
    # A learner holds weights, gradient and two moments of four bytes each; a probe its policy's weights.
    least = {"sft": 16, "head": 16, "probe": 4, "dpo": 20, "ppo": 16}[kind] * weights
    root = make(kind)
    free = {"bytes": least - 1}
    monkeypatch.setattr(memory, "free_memory", lambda device: free["bytes"])
    loaded = {"sft": sft, "head": reward, "probe": reward, "dpo": dpo, "ppo": networks}[kind]
    with monkeypatch.context() as early:
        early.delattr(loaded, "load_policy")
        error = refused(root)
    assert error.kind == "memory"
    assert "The run needs at least" in error.message
    assert "machine with more memory" in error.mend
    free["bytes"] = least * 4
    assert entry.main([str(root)]) == 0


@pytest.mark.parametrize("kind", ["sft", "head", "dpo"])
def test_lora_needs_less_memory(make: Make, models: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    weights = memory.stored_parameters(models / ("starter" if kind == "sft" else "policy"))
    monkeypatch.setattr(memory, "free_memory", lambda device: 8 * weights)
    assert entry.main([str(make(kind, lora_rank=2))]) == 0


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        {"learning_rate": float("inf")},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"gradient_clip": float("inf")},
        {"batch_size": 0},
        {"precision": "fp8"},
        {"checkpoint_every": 0},
        {"lora_rank": 2, "lora_targets": "nonesuch"},
        {"learning_rat": 1.0},
    ],
    ids=str,
)
def test_an_impossible_configuration_is_refused_by_its_name(make: Make, kind: str, config: dict[str, Any]) -> None:
    error = refused(make(kind, **config))
    assert error.kind == "config"
    assert list(config.values())[-1] == "nonesuch" or next(iter(config)) in error.message


def test_no_kind_takes_a_number_that_is_none() -> None:
    for kind in RunKind:
        assert CONFIGS[kind].model_config["allow_inf_nan"] is False


# ---- data -----------------------------------------------------------------------------------------------------------


def with_third(kind: str, **fields: Any) -> list[dict[str, Any]]:
    rows = ROWS[kind][LEARNT[kind]]
    return [row | fields if place == 3 else row for place, row in enumerate(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_missing_empty_or_torn_is_refused(make: Make, kind: str) -> None:
    root = make(kind, rows=[])
    file = root / "data" / LEARNT[kind]
    spec = json.loads((root / "spec.json").read_text())
    (root / "spec.json").write_text(json.dumps(spec | {"data_sha256": {}}))
    assert refused(root).kind == "data"  # nothing in it
    whole = "".join(json.dumps(row) + "\n" for row in ROWS[kind][LEARNT[kind]]).encode()
    count = whole.count(b"\n")
    for bad in (b'{"a": 1', b"\n", b'{"prompt_id": "\xff"}\n'):
        file.write_bytes(whole + bad)
        error = refused(root)
        assert (error.kind, f"line {count + 1}:" in error.message) == ("data", True)
    file.unlink()
    assert "is missing" in refused(root).message
    file.write_bytes(whole)
    assert entry.main([str(root)]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_of_held_out_prompts_alone_teaches_nothing(make: Make, kind: str) -> None:
    held = [row | {"split": "heldout"} for row in ROWS[kind][LEARNT[kind]]]
    assert refused(make(kind, rows=held)).kind == "data"


@pytest.mark.parametrize("kind", ["sft", *JUDGED])
def test_a_conversation_without_a_message_is_named(make: Make, kind: str) -> None:
    rows = with_third(kind, prompt=[])
    error = refused(make(kind, rows=rows))
    assert error.kind == "data"
    assert (rows[3]["judgment_id"] if kind in JUDGED else rows[3]["prompt_id"]) in error.message


def test_an_empty_demonstration_is_named(make: Make) -> None:
    error = refused(make("sft", rows=with_third("sft", completion=" \n")))
    assert (error.kind, "1 of " in error.message) == ("data", True)
    assert test_sft.RECORDS[3].prompt_id in error.message


def test_demonstrations_beyond_the_policy_s_context_are_left_out(make: Make, models: Path) -> None:
    """The toy policy reads 96 tokens, max_length allows 512."""
    long = [row | {"completion": "now " * 150} for row in ROWS["sft"]["demonstrations.jsonl"]]
    error = refused(make("sft", rows=long, folders={"policy": models / "policy"}))
    assert error.kind == "data"
    assert "more than 96 tokens" in error.message


@pytest.mark.parametrize("kind", JUDGED)
@pytest.mark.parametrize(
    "fields", [{"tiers": [[0], [0]]}, {"tiers": [[0], [5]]}, {"completions": ["a"], "tiers": [[0]]}]
)
def test_a_judgment_that_does_not_rank_its_answers_is_named(make: Make, kind: str, fields: dict[str, Any]) -> None:
    error = refused(make(kind, rows=with_third(kind, **fields)))
    assert error.kind == "data"
    assert "Judgment j3 does not rank each of its" in error.message


@pytest.mark.parametrize("kind", JUDGED)
def test_judgments_that_say_nothing_are_refused(make: Make, kind: str) -> None:
    for fields in ({"tiers": [[0, 1]]}, {"completions": ["a b", "a b"]}):
        rows = [row | fields for row in ROWS[kind]["preferences.jsonl"]]
        root = make(kind, rows=rows)
        assert refused(root).kind == "data"
        shutil.rmtree(root)


@pytest.mark.parametrize("kind", JUDGED)
def test_a_prompt_that_is_both_learnt_from_and_held_out_is_refused(make: Make, kind: str) -> None:
    rows = ROWS[kind]["preferences.jsonl"]
    error = refused(make(kind, rows=[row | {"prompt": rows[0]["prompt"]} for row in rows]))
    assert "both learnt from and held out" in error.message


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = {"checkpoint_every": 1} | (
        {"iterations": 3} if kind == "ppo" else {"max_steps": 4} if kind == "sft" else {}
    )
    root = make(kind, **settings)
    assert entry.main([str(root)]) == 0
    whole = {path.name: path.read_bytes() for path in (root / "final").glob("*.safetensors")}
    for made in ("final", "metrics.jsonl", "samples.jsonl", "result.json"):
        path = root / made
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    end_step = entry.Run.end_step

    def dies(self: Any, step: int, total: int, *more: Any) -> None:
        end_step(self, step, total, *more)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(entry.Run, "end_step", dies)
    assert entry.main([str(root)]) == 4
    monkeypatch.setattr(entry.Run, "end_step", end_step)
    state = root / "checkpoints" / "step-000002" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert entry.main([str(root)]) == 0
    assert '"checkpoint/damaged": 1' in (root / "metrics.jsonl").read_text()
    assert whole == {path.name: path.read_bytes() for path in (root / "final").glob("*.safetensors")}


@pytest.mark.parametrize("kind", ["sft", "head", "dpo", "ppo"])
def test_the_checkpoint_of_another_lora_rank_is_refused_with_the_mend(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    more = {"iterations": 3} if kind == "ppo" else {}
    root = make(kind, checkpoint_every=1, lora_rank=2, **more)
    end_step = entry.Run.end_step

    def dies(self: Any, step: int, *more: Any) -> None:
        end_step(self, step, *more)
        raise KeyboardInterrupt

    with monkeypatch.context() as early:
        early.setattr(entry.Run, "end_step", dies)
        assert entry.main([str(root)]) == 4
    spec = json.loads((root / "spec.json").read_text())
    spec["config"]["lora_rank"] = 3
    (root / "spec.json").write_text(json.dumps(spec))
    assert entry.main([str(root)]) == 4
    error = RunError.model_validate_json((root / "error.json").read_text())
    assert (error.kind, "of another model" in error.message) == ("checkpoint", True)
    assert "put its settings back" in error.mend
