"""kill -9 at random moments, also while a checkpoint is being written: every kind of run ends with the same bits.

The uninterrupted run is `python -m app.training`. Those that are killed are forked from a process that has imported it
already, so that a start costs a tenth of a second and many kills fit into a test.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.folders import write_folder
from app.core.records import RunDir
from app.policy.checkpoint import load_policy
from app.policy.reward_model import ProbeReward, RewardSettings, save_reward_model
from app.policy.starter import make_starter
from app.training.__main__ import main
from app.training.environment import attempts
from tests.training import test_dpo, test_ppo_options, test_reward, test_sft
from tests.training import toy_ppo as toy
from tests.training.judgments import DATA
from tests.training.test_board import logged, points

Make = Callable[..., Path]
ROOT = Path(__file__).parents[2]
LORA = {"lora_rank": 2}
PPO = test_ppo_options.SMALL | {"iterations": 4, "sample_every": 2, "kl_budget": 1000.0, "kl_control": "adaptive"}
SFT = test_sft.SMALL | {"eval_every": 4, "log_every": 1, "sample_prompts": 1, "eval_rows": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", SFT),
    "sft, packed": ("sft", SFT | {"packing": True}),
    "sft, lora": ("sft", SFT | LORA | {"max_steps": 6, "curriculum": 0.0, "learning_rate": 1e-3}),
    "reward head": ("reward", test_reward.HEAD | {"epochs": 2}),
    "reward probe": ("reward", test_reward.PROBE),
    "dpo": ("dpo", test_dpo.SMALL | {"epochs": 3}),
    "ppo": ("ppo", PPO | {"optimizer": "muon"}),
    "ppo, lora": ("ppo", PPO | LORA),
}


def started(root: str) -> None:
    """What a forked process does: app.training's own main, its log beside the run."""
    with (Path(root) / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 2)
    sys.exit(main([root]))


@pytest.fixture(scope="module")
def warm() -> ForkServerContext:
    """Makes processes that have imported every training loop."""
    context = multiprocessing.get_context("forkserver")
    loops = [f"app.training.{name}" for name in ("__main__", "sft", "reward", "dpo", "ppo")]
    context.set_forkserver_preload([*loops, "tests.training.test_kills"])
    return context


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`starter`, `policy`, and `reward`, a probe that reads `policy`."""
    root = tmp_path_factory.mktemp("models")
    write_folder(root / "starter", lambda partial: make_starter(partial, "tiny"))
    toy.make_policy(root / "policy")
    policy = load_policy(root / "policy")
    probe = ProbeReward(RewardSettings(kind="probe", pooling="mean", layers=[0, 2], contrast=[[5, 6]]), policy.model)
    draw = torch.Generator().manual_seed(5)
    for parameter in (probe.weight, probe.value):
        parameter.data.normal_(0, 0.3, generator=draw)
    (root / "reward").mkdir()
    save_reward_model(root / "reward", probe, policy.tokenizer)
    return root


@pytest.fixture
def make(make_run: Make, models: Path) -> Make:
    """A directory of one of KINDS; keyword arguments are configuration."""

    def build(kind: str, name: str, **config: Any) -> Path:
        loop, settings = KINDS[kind]
        demonstrations = [json.loads(r.model_dump_json()) for r in test_sft.RECORDS]
        data: dict[str, dict[str, Any]] = {
            "sft": {"demonstrations.jsonl": demonstrations},
            "reward": DATA,
            "dpo": {"preferences.jsonl": test_dpo.judgments(), "prompts.jsonl": toy.prompt_rows()},
            "ppo": {"prompts.jsonl": toy.prompt_rows()},
        }
        folders = {
            "sft": {"policy": str(models / "starter")} if "lora" in kind else {},
            "reward": {"policy": str(models / "starter")},
            "dpo": {"policy": str(models / "policy")},
            "ppo": {"policy": str(models / "policy"), "reward_model": str(models / "reward")},
        }
        return make_run(name, kind=loop, config=settings | config, data=data[loop], **folders[loop])

    return build


def uninterrupted(root: Path) -> float:
    """Run a directory in a process of its own; the seconds from its first sign of life to its end."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(root)}
    with (root / "log.txt").open("ab") as log:
        subprocess.run([sys.executable, "-m", "app.training", str(root)], stderr=log, env=environment, check=True)
    [attempt] = attempts(RunDir(root))
    return (root / "result.json").stat().st_mtime - attempt.time


def writing(root: Path) -> bool:
    """Whether a checkpoint or the end is being written just now."""
    return any((root / "checkpoints").glob(".step-*")) or any(root.glob(".final.*"))


def kill_once(warm: ForkServerContext, root: Path, seconds: float, chance: random.Random) -> bool:
    """Start a run and kill it at some moment of its life; half the time in the middle of a write. False: it ended."""
    process = warm.Process(target=started, args=(str(root),), daemon=True)
    begun = time.monotonic()
    process.start()
    wait, at_write = chance.uniform(0.0, 0.9) * seconds, chance.random() < 0.5
    while process.is_alive():
        if time.monotonic() - begun > wait and (not at_write or writing(root)):
            time.sleep(chance.random() * 0.01)
            break
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -9


def finish(warm: ForkServerContext, root: Path) -> None:
    process = warm.Process(target=started, args=(str(root),), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == 0, (root / "log.txt").read_text()[-2000:]


def assert_same_end(whole: Path, killed: Path) -> None:
    first, second = (
        {str(path.relative_to(root)): path.read_bytes() for path in (root / "final").rglob("*") if path.is_file()}
        for root in (whole, killed)
    )
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert content == second[name], name
    results = [json.loads((root / "result.json").read_text()) for root in (whole, killed)]
    for result in results:
        result["metrics"].pop("tokens_per_s", None)
    assert results[0] == results[1]
    # Each step once, as if nothing had happened; speeds aside.
    told = [
        [{k: v for k, v in row.items() if not _speed(k)} for row in test_sft.rows(root / "metrics.jsonl")]
        for root in (whole, killed)
    ]
    assert told[0] == told[1]
    if (whole / "samples.jsonl").exists():
        assert (whole / "samples.jsonl").read_text() == (killed / "samples.jsonl").read_text()
    drawn = [(tag.removeprefix("evaluate/"), *point) for tag, *point in points(killed)]
    assert sorted(drawn) == logged(killed)
    assert not (killed / "checkpoints").exists()
    assert not list(killed.glob(".*"))


def _speed(name: str) -> bool:
    return name in ("time", "tokens_per_s", "eps") or name.startswith("time/")


@pytest.mark.parametrize("kind", ["sft, lora", "reward head", "reward probe", "ppo, lora"])
def test_a_killed_run_goes_on_to_the_same_bits(make: Make, warm: ForkServerContext, kind: str) -> None:
    """SFT, DPO and PPO of whole models are killed in tests of their own."""
    whole, killed = make(kind, "whole", checkpoint_every=1), make(kind, "killed", checkpoint_every=1)
    finish(warm, whole)
    chance = random.Random(kind)
    for _ in range(2):
        process = warm.Process(target=started, args=(str(killed),), daemon=True)
        process.start()
        seen = set((killed / "checkpoints").glob("step-*"))
        while process.is_alive() and not set((killed / "checkpoints").glob("step-*")) - seen:
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
    assert not (killed / "result.json").exists()
    finish(warm, killed)
    assert "resumed from step" in (killed / "log.txt").read_text()
    assert_same_end(whole, killed)
    assert len(attempts(RunDir(killed))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_campaign_of_kills_changes_nothing(make: Make, warm: ForkServerContext, kind: str) -> None:
    """As many kills as fit into some twenty seconds, three at least, in runs that are killed up to six times each."""
    whole = make(kind, "whole", checkpoint_every=1)
    seconds = uninterrupted(whole)
    chance, kills, deadline = random.Random(f"{kind} kills"), 0, time.monotonic() + 18
    trial = 0
    while time.monotonic() < deadline or kills < 3:
        killed = make(kind, f"killed-{trial}", checkpoint_every=chance.choice([1, 1, 2, 3]))
        for _ in range(chance.randint(1, 6)):
            if not kill_once(warm, killed, seconds, chance):
                seconds *= 0.7  # a forked process is faster than the one that was timed
                break
            kills += 1
        finish(warm, killed)
        assert_same_end(whole, killed)
        shutil.rmtree(killed)
        trial += 1
    print(f"{kind}: {kills} kills in {trial} runs")
