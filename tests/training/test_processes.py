"""One run over several processes. Trajectories are compared with those of one process, everything else with figures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from app.core.configs import CONFIGS
from app.policy.starter import make_starter
from app.training.failures import RunFailure
from app.training.processes import ALONE, World, buckets
from app.training.run import Run
from tests.training.judgments import BAD, GOOD, HELD, TRAIN, demonstration, preference
from tests.training.toy_processes import STEPS, ended, help_out, launch, train, train_toy

ROOT = Path(__file__).parents[2]
Make = Callable[..., Path]
Rows = Callable[[Path], list[dict[str, Any]]]


# ---- what the processes do for each other, in figures ---------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three processes found, by rank."""
    folder = tmp_path_factory.mktemp("found")
    assert ended(launch(3, help_out, folder)) == [0, 0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_items_are_shared_out_whole_and_once(found: list[dict[str, Any]]) -> None:
    assert [f["share"] for f in found] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


def test_entries_of_one_group_stay_together(found: list[dict[str, Any]]) -> None:
    # Groups in order are 2, 5 and 9.
    assert found[0]["mine"] == [False, False, False, True, False]
    assert found[1]["mine"] == [True, True, False, False, False]
    assert found[2]["mine"] == [False, False, True, False, True]


def test_results_come_back_in_order_also_where_a_process_had_no_item(found: list[dict[str, Any]]) -> None:
    assert [f["spread"] for f in found] == [[[0.1, "of 0"], [0.2, "of 1"]]] * 3


def test_gradients_are_summed_and_what_has_none_anywhere_keeps_none(found: list[dict[str, Any]]) -> None:
    # 1 + 2 + 3; half a gradient of one process alone; nothing.
    assert [f["gradients"] for f in found] == [[[6.0, 60.0], [0.5, -0.5], None]] * 3


def test_figures_are_added_up_and_some_are_the_largest(found: list[dict[str, Any]]) -> None:
    assert [f["sum"] for f in found] == [{"loss": 0.75, "worst": 1.0, "rare": 3.0}] * 3
    assert [f["total"] for f in found] == [[4.0, 1.0]] * 3


def test_what_one_process_decides_or_notices_holds_for_all(found: list[dict[str, Any]]) -> None:
    assert [f["agreed"] for f in found] == [0.1] * 3
    assert [f["any"] for f in found] == [[True, False]] * 3


def test_processes_that_differ_are_refused_in_every_one_of_them(found: list[dict[str, Any]]) -> None:
    assert [f["refused"] for f in found] == ["The processes of the run do not have the same colour."] * 3


def test_one_process_gets_back_what_it_gives() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None
    assert ALONE.share([1, 2]) == [1, 2]
    assert ALONE.mine(torch.tensor([3, 3])).tolist() == [True, True]
    assert ALONE.spread([1, 2], lambda items: [-n for n in items]) == [-1, -2]
    assert ALONE.sum({"loss": 2.0}) == {"loss": 2.0}
    assert (ALONE.agreed("x"), ALONE.any(True), ALONE.any(False)) == ("x", True, False)


def test_buckets_hold_one_type_each_and_no_more_than_they_may() -> None:
    tensors = [torch.zeros(3), torch.zeros(4), torch.zeros(2, dtype=torch.float64), torch.zeros(9), torch.zeros(1)]
    assert [[t.numel() for t in bucket] for bucket in buckets(tensors, most=7)] == [[3, 4], [9], [1], [2]]


# ---- the device ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes torch say that there are so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return pretend


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(gpus: Callable[[int], None]) -> None:
    gpus(2)
    assert World(3, 4, 1, 2).device("auto") == torch.device("cuda", 1)
    assert ALONE.device("cuda") == torch.device("cuda", 0)
    assert ALONE.device("cpu") == torch.device("cpu")
    gpus(0)
    assert World(3, 4, 1, 2).device("auto") == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(gpus: Callable[[int], None]) -> None:
    gpus(1)
    with pytest.raises(RunFailure, match="2 processes on a machine with 1 GPU") as failure:
        World(0, 2, 0, 2).device("auto")
    assert failure.value.error.kind == "config"


def test_a_run_that_asks_for_a_gpu_where_there_is_none_is_refused(make_run: Make, gpus: Callable[[int], None]) -> None:
    gpus(0)
    with pytest.raises(RunFailure, match="torch finds no GPU") as failure:
        Run.open(make_run(config={"device": "cuda"}))
    assert failure.value.error.kind == "config"
    assert "Set device to cpu" in failure.value.error.mend
    assert Run.open(make_run("auto")).device == torch.device("cpu")


def test_every_kind_of_run_has_a_device() -> None:
    assert {config.model_fields["device"].default for config in CONFIGS.values()} == {"auto"}


# ---- two processes and one ----------------------------------------------------------------------------------------

PROMPTS = [{name: row[name] for name in ("prompt_id", "prompt", "split")} for row in TRAIN + HELD]
DEMONSTRATIONS = [demonstration(i) | {"completion": (GOOD, BAD[: 18 + i])[i % 2]} for i in range(11)]
DEMONSTRATIONS += [demonstration(i) | {"split": "heldout"} for i in range(20, 23)]
RANKING = preference(50, [[0], [1], [2]]) | {"completions": [GOOD, BAD, BAD[:18]]}
TIE = preference(60, [[0, 1]])
PREFERENCES = [*TRAIN[:9], RANKING, TIE, *HELD[:3]]
ALL = {"preferences.jsonl": PREFERENCES, "prompts.jsonl": PROMPTS, "demonstrations.jsonl": DEMONSTRATIONS}

# The last batch of a pass is a single row: one process then reads nothing.
CONFIG: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 5, "micro_batch_size": 2, "warmup_steps": 1, "log_every": 1, "eval_every": 2},
    "reward": {"kind": "head", "batch_size": 5, "micro_batch_size": 4, "epochs": 2, "members": 2},
    "dpo": {
        "batch_size": 3,
        "micro_batch_size": 1,
        "epochs": 1,
        "sft_weight": 0.1,
        "evaluation_prompts": 3,
        "sample_prompts": 2,
        "max_tokens": 8,
    },
    "ppo": {
        "iterations": 2,
        "batch_size": 9,
        "minibatches": 3,
        "micro_batch_size": 1,
        "epochs": 1,
        "value_warmup": 0,
        "max_tokens": 8,
        "ptx_weight": 0.1,
        "kl_control": "adaptive",
        "evaluation_prompts": 3,
        "sample_prompts": 3,
        "sample_every": 1,
    },
}
RATES = {"sft": 1e-3, "reward": 1e-4, "dpo": 1e-4, "ppo": 1e-4}
TIMES = ("time", "time/sample", "time/score", "time/update", "tokens_per_s", "eps")


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter")
    make_starter(folder, "tiny", 1)
    return folder


@pytest.fixture
def runs_of(make_run: Make, starter: Path) -> Callable[..., list[Path]]:
    """Directories of the same run by their names; keyword arguments are configuration."""

    def make(kind: str, names: list[str], reward_model: str | None = None, /, **more: Any) -> list[Path]:
        config = {**CONFIG[kind], "learning_rate": RATES[kind], "checkpoint_every": 1, **more}
        spec = {"policy": str(starter), "reward_model": reward_model}
        return [make_run(name, kind, config, ALL, **spec) for name in names]

    return make


def trajectory(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def answers(root: Path) -> list[tuple[int, str, str]]:
    if not (root / "samples.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (root / "samples.jsonl").read_text().splitlines()]
    return [(line["step"], line["prompt_id"], line["completion"]) for line in lines]


def weights(root: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{name}": t for path in root.glob("final/*.safetensors") for name, t in load_file(path).items()
    }


def assert_same_but_for_rounding(one: Path, several: Path) -> None:
    here, there = trajectory(one), trajectory(several)
    assert [(row["step"], row.pop("phase")) for row in there] == [(row["step"], row.pop("phase")) for row in here]
    for expected, row in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=2e-5, nan_ok=True)
    assert answers(several) == answers(one)
    expected = weights(one)
    assert weights(several).keys() == expected.keys()
    for name, tensor in weights(several).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    results = [json.loads((root / "result.json").read_text()) for root in (one, several)]
    assert results[0]["step"] == results[1]["step"]
    assert results[1]["metrics"].keys() == results[0]["metrics"].keys()


def both(one: Path, two: Path) -> None:
    assert ended([*launch(1, train, one), *launch(2, train, two)]) == [0, 0, 0]


@pytest.mark.parametrize("more", [{}, {"packing": True, "micro_batch_size": None}], ids=["rows", "packed"])
def test_supervised_fine_tuning_is_the_same_in_two_processes(
    runs_of: Callable[..., list[Path]], more: dict[str, Any]
) -> None:
    one, two = runs_of("sft", ["one", "two"], **more)
    both(one, two)
    assert_same_but_for_rounding(one, two)
    assert [row["step"] for row in trajectory(two) if row["phase"] == "train"] == [1, 2, 3]


def test_reward_head_and_ppo_are_the_same_in_two_processes(runs_of: Callable[..., list[Path]]) -> None:
    one, two = runs_of("reward", ["one", "two"])
    both(one, two)
    assert_same_but_for_rounding(one, two)
    assert (one / "report.json").exists()
    assert (two / "report.json").exists()
    one, two = runs_of("ppo", ["ppo one", "ppo two"], str(one / "final"))
    both(one, two)
    assert_same_but_for_rounding(one, two)
    # Three passes an iteration, and what a process reads again it reads as it did before.
    rows = [row for row in trajectory(two) if row["phase"] == "train"]
    assert [(row["policy/updates"], row["policy/first_ratio_error"]) for row in rows] == [(3, 0.0), (3, 0.0)]


def test_dpo_is_the_same_in_two_processes(runs_of: Callable[..., list[Path]]) -> None:
    one, two = runs_of("dpo", ["one", "two"])
    both(one, two)
    assert_same_but_for_rounding(one, two)
    assert trajectory(two)[0]["loss"] == pytest.approx(0.6931 + 0.1 * trajectory(two)[0]["nll"], abs=1e-3)


def test_a_probe_is_refused_where_there_are_several_processes(runs_of: Callable[..., list[Path]]) -> None:
    [root] = runs_of("reward", ["probe"], kind="probe")
    assert ended(launch(2, train, root)) == [4, 4]
    error = json.loads((root / "error.json").read_text())
    assert error["kind"] == "config"
    assert "python -m app.training" in error["mend"]


@pytest.mark.slow
def test_more_processes_than_rows_are_the_same_as_one(runs_of: Callable[..., list[Path]]) -> None:
    one, three = runs_of("reward", ["one", "three"], batch_size=2)
    assert ended([*launch(1, train, one), *launch(3, train, three)]) == [0] * 4
    assert_same_but_for_rounding(one, three)
    model = str(one / "final")
    one, three = runs_of("ppo", ["ppo one", "ppo three"], model, batch_size=2, minibatches=2)
    assert ended([*launch(1, train, one), *launch(3, train, three)]) == [0] * 4
    assert_same_but_for_rounding(one, three)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo"])
def test_a_killed_run_of_two_processes_ends_with_the_same_bits(runs_of: Callable[..., list[Path]], kind: str) -> None:
    model, more = None, {"epochs": 4}
    if kind == "ppo":
        [judge] = runs_of("reward", ["judge"])
        assert ended(launch(1, train, judge)) == [0]
        model, more = str(judge / "final"), {"iterations": 5}
    whole, killed = runs_of(kind, ["whole", "killed"], model, **more)
    assert ended(launch(2, train, whole)) == [0, 0]
    kill_after(launch(2, train, killed), killed, 2)
    assert ended(launch(2, train, killed)) == [0, 0]
    assert trajectory(killed) == trajectory(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(killed).items())


# ---- stopping, failing, going on ----------------------------------------------------------------------------------


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def steps(root: Path) -> int:
    log = root / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def kill_after(processes: list[Any], root: Path, step: int) -> None:
    until(lambda: (root / "checkpoints").exists() and steps(root) >= step)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    ended(processes)
    assert not (root / "result.json").exists()


@pytest.fixture
def whole(make_run: Make) -> Path:
    """A toy run of two processes that nobody disturbed."""
    root = make_run("whole", config={"checkpoint_every": 3})
    assert ended(launch(2, train_toy, root)) == [0, 0]
    assert steps(root) == STEPS
    return root


def assert_same_bits(one: Path, other: Path) -> None:
    assert trajectory(other) == trajectory(one)
    assert (other / "final/model.safetensors").read_bytes() == (one / "final/model.safetensors").read_bytes()


def test_a_killed_toy_of_two_processes_ends_with_the_same_bits(make_run: Make, whole: Path) -> None:
    root = make_run(config={"checkpoint_every": 3})
    kill_after(launch(2, train_toy, root, 0.1), root, 5)
    assert ended(launch(2, train_toy, root)) == [0, 0]
    assert_same_bits(whole, root)
    assert not (root / "checkpoints").exists()


@pytest.mark.parametrize("how", ["cancel", "signal"])
def test_a_stop_asked_of_any_process_stops_all_at_one_step(make_run: Make, whole: Path, how: str) -> None:
    root = make_run(config={"checkpoint_every": 3})
    processes = launch(2, train_toy, root, 0.15)
    until(lambda: steps(root) >= 2)
    if how == "cancel":
        (root / "cancel").touch()
    else:
        os.kill(processes[1].pid, signal.SIGTERM)  # type: ignore[arg-type]
    assert ended(processes) == [3, 3]
    result = json.loads((root / "result.json").read_text())
    assert result["status"] == "cancelled"
    assert 2 <= result["step"] < STEPS
    assert steps(root) == result["step"]
    assert ended(launch(2, train_toy, root)) == [0, 0]
    assert not (root / "cancel").exists()
    assert_same_bits(whole, root)


def test_what_one_process_fails_of_ends_all_and_is_named(make_run: Make, whole: Path) -> None:
    root = make_run(config={"checkpoint_every": 3})
    assert ended(launch(2, train_toy, root, 0.0, "raise"), 20) == [4, 4]
    error = json.loads((root / "error.json").read_text())
    assert (error["kind"], error["message"]) == ("data", "Row 7 of the second process is torn.")
    assert ended(launch(2, train_toy, root)) == [0, 0]
    assert not (root / "error.json").exists()
    assert_same_bits(whole, root)


def test_a_process_that_is_killed_ends_the_others_with_a_reason(make_run: Make) -> None:
    root = make_run(config={"checkpoint_every": 3})
    assert ended(launch(2, train_toy, root, 0.0, "kill"), 20) == [4, -signal.SIGKILL]
    error = json.loads((root / "error.json").read_text())
    assert error["kind"] == "internal"
    assert error["message"].startswith("Another process of the run ended or does not answer")


def test_a_process_that_hangs_is_waited_for_no_longer_than_the_timeout(make_run: Make) -> None:
    root = make_run(config={"checkpoint_every": 3})
    main, other = launch(2, train_toy, root, 0.0, "hang", 3.0)
    assert ended([main], 20) == [4]
    assert ended([other], 0) == [-signal.SIGKILL]
    assert "does not answer" in json.loads((root / "error.json").read_text())["message"]


# ---- the launchers ------------------------------------------------------------------------------------------------


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def test_torchrun_starts_a_run(runs_of: Callable[..., list[Path]]) -> None:
    one, two = runs_of("sft", ["one", "two"])
    alone = launch(1, train, one)
    done = launched("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "app.training", str(two))
    assert done.returncode == 0, done.stderr
    assert "2 processes, on cpu" in done.stderr
    assert len(re.findall("finished: ", done.stderr)) == 1  # the main process alone says so
    assert ended(alone) == [0]
    assert_same_but_for_rounding(one, two)


@pytest.mark.slow
def test_accelerate_starts_a_run(runs_of: Callable[..., list[Path]]) -> None:
    one, two = runs_of("sft", ["one", "two"])
    alone = launch(1, train, one)
    flags = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"]
    done = launched("accelerate.commands.launch", *flags, "--dynamo_backend", "no", "-m", "app.training", str(two))
    assert done.returncode == 0, done.stderr
    assert ended(alone) == [0]
    assert_same_but_for_rounding(one, two)
