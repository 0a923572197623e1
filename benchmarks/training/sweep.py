"""How TRL's settings were found: `make bench-training ARGS=--sweep` tries each, then the good ones together.

A setting is good where it beats TRL's plain ones by more than GAIN in the same short run. results/training-sweep.json
has what was tried; the race takes the winner of each task from there.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import report
from benchmarks.training import contest
from benchmarks.training.scenes import TASKS, scene_of

NAME = "training-sweep"
GAIN = 1.02
Knobs = dict[str, Any]

USUAL: list[Knobs] = [{"spin": "default"}, {"attention": "eager"}, {"fused": True}]
CANDIDATES: dict[str, list[Knobs]] = {
    "sft": [*USUAL, {"rows": 16}, {"rows": 8}, {"order": "group_by_length"}],
    "reward": [*USUAL, {"rows": 8}, {"rows": 4}],
    "dpo": [*USUAL, {"rows": 8}, {"rows": 4}, {"precompute": True}],
    "ppo": [*USUAL, {"rollout": 32}, {"rollout": 8}, {"cache": "static"}],
}


def best(scene: str, task: str) -> Knobs:
    """The winner of the last sweep; TRL's plain settings where there was none."""
    path = report.RESULTS / f"{NAME}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return dict(found.get(scene.split("-")[0], found.get("starter", {})).get(task, {}).get("best", {}))


def sweep(name: str, tasks: Sequence[str], say: Callable[[str], None]) -> None:
    """Try every candidate of the tasks in the scene `name`, and write down which was fastest."""
    path = report.RESULTS / f"{NAME}.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else {}
    scene = scene_of(f"{name}-sweep")
    contest.helper("build", scene.name)
    for task in TASKS:
        if task not in tasks:
            continue
        tried: list[dict[str, Any]] = []

        def attempt(knobs: Knobs, task: str = task, tried: list[dict[str, Any]] = tried) -> float:
            contest.wait_until_idle()
            try:
                found = contest.run(scene, task, "trl", 0, knobs)
                row = {"samples_per_s": found["samples_per_s"], "others_cores": found["others_cores"]}
            except contest.Failed as failure:
                row = {"samples_per_s": 0.0, "failed": str(failure).splitlines()[-1]}
            tried.append({"knobs": knobs, **row})
            say(f"{scene.name} {task} {knobs}: {row['samples_per_s']:.2f}/s")
            return float(row["samples_per_s"])

        plain = min(attempt({}), attempt({}))
        good: dict[str, tuple[float, Knobs]] = {}
        for knobs in CANDIDATES[task]:
            speed = attempt(knobs)
            (setting,) = knobs
            if speed > GAIN * plain and speed > good.get(setting, (0.0, {}))[0]:
                good[setting] = speed, knobs
        if len(good) > 1:
            attempt({setting: value for _, knobs in good.values() for setting, value in knobs.items()})
        winner = max(tried, key=lambda row: row["samples_per_s"])
        figures.setdefault(name, {})[task] = {"best": winner["knobs"], "tried": tried}
        report.write(NAME, figures, rows_of(figures), "Samples a second of TRL in short runs, two threads.")


def rows_of(figures: dict[str, Any]) -> list[report.Row]:
    """Every setting tried, the fastest first."""
    rows: list[report.Row] = []
    for scene, tasks in figures.items():
        for task, found in tasks.items():
            plain = found["tried"][0]["samples_per_s"]
            for row in sorted(found["tried"], key=lambda row: -row["samples_per_s"]):
                knobs = ", ".join(f"{k} {v}" for k, v in row["knobs"].items()) or "plain"
                speed = row["samples_per_s"]
                said = f"{speed:.2f}/s, {speed / plain:.2f} of plain" if speed else f"failed: {row['failed']}"
                rows.append((f"{scene}, {task}: {knobs}", said, ""))
    return rows
