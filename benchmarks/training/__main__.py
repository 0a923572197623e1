"""`make bench-training`: ours against TRL in SFT, reward model, DPO and PPO, and both against their matrix products.

ARGS="--scenes starter 15m --tasks ppo --contestants ours --rounds 1" runs less; `--scenes starter-quick` shows in a few
minutes that everything runs; `--sweep` looks for TRL's best settings first. Figures of other scenes and tasks stay.
The whole, starter and 15m, takes about an hour on two idle cores, the sweep another half; `gpu` needs one.
"""

import argparse
import json
import time
from typing import Any

from app.core.configs import CONFIGS
from app.core.vocabulary import RunKind
from benchmarks import report
from benchmarks.training import contest
from benchmarks.training.environment import Missing
from benchmarks.training.scenes import SCENES, TASKS, THREADS, Scene, scene_of
from benchmarks.training.sweep import best, sweep
from benchmarks.training.tables import rows_of

CONTESTANTS = ("ours", "trl")
Figures = dict[str, Any]


def main() -> None:
    """Run what was asked for, keeping each figure as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=["starter", "15m"], help=f"{', '.join(SCENES)}, or SCENE-quick")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--rounds", type=int, help="fewer rounds than a scene has")
    parser.add_argument("--sweep", action="store_true", help="look for TRL's best settings in these scenes first")
    parser.add_argument("--bound", type=float, default=240, help="seconds to wait for a quiet machine before a round")
    given = parser.parse_args()
    for name in given.scenes:
        if given.sweep:
            sweep(name, given.tasks, say)
        race(scene_of(name), given)


def race(scene: Scene, given: argparse.Namespace) -> None:
    """Interleaved rounds of every task of one scene."""
    if scene.device == "cuda" and not gpu():
        say(f"{scene.name}: there is no GPU here")
        return
    contest.BUILD.mkdir(parents=True, exist_ok=True)
    say(f"{scene.name}: {scene.about}")
    contest.helper("build", scene.name)
    rounds = min(scene.rounds, given.rounds or scene.rounds)
    found: dict[str, Figures] = {task: {} for task in given.tasks}
    for number in range(rounds):
        quiet = contest.wait_until_quiet(given.bound)
        say(f"round {number + 1} of {rounds}, load {quiet['load']} after {quiet['waited_s']} s of waiting")
        for task in given.tasks:
            # Who is first changes: neither side always meets a warm, or a throttled, machine.
            for contestant in sorted(given.contestants, reverse=bool(number % 2)):
                if f"{contestant}_missing" not in found[task]:
                    one(scene, task, contestant, number, quiet, found[task], given)
            conclude(scene, task, found[task])
            keep(scene, task, found[task])


def one(
    scene: Scene, task: str, contestant: str, seed: int, quiet: Figures, found: Figures, given: argparse.Namespace
) -> None:
    """One contestant's round, or why there is none."""
    knobs = {} if contestant == "ours" else best(scene.name, task)
    if contestant == "ours" and (why := missing(task, scene.device)):
        found["ours_missing"] = why
        say(f"  {task}, ours: {why}: skipped")
        return
    idle = contest.wait_until_idle(min(60.0, given.bound))
    try:
        figures = contest.run(scene, task, contestant, seed, knobs, scene.judged)
    except (contest.Failed, Missing) as failure:
        found[f"{contestant}_missing"] = str(failure).strip().splitlines()[-1]
        say(f"  {task}, {contestant}: {failure}")
        return
    figures |= {"busy_before": idle, **quiet, "knobs": knobs}
    found.setdefault(contestant, {"rounds": []})["rounds"].append(figures)
    say(
        f"  {task}, {contestant}: {figures['samples_per_s']:.2f}/s, {figures['tokens_per_s']:,.0f} tokens/s, "
        f"{figures['peak_mib']:.0f} MiB, {figures['wall_s']:.0f} s in all, others used {figures['others_cores']} cores"
    )


def missing(task: str, device: str) -> str | None:
    """Why this tree cannot run the task, or None."""
    if task not in [kind.value for kind in RunKind]:
        return f"there is no run of kind {task} in this tree"
    if device != "cpu" and "device" not in CONFIGS[RunKind(task)].model_fields:
        return f"runs of kind {task} have no setting for a device in this tree"
    return None


def conclude(scene: Scene, task: str, found: Figures) -> None:
    """Medians, ratios of rounds run next to each other, and shares of the limit."""
    for side in CONTESTANTS:
        if side in found:
            found[side]["median"] = contest.medians(found[side]["rounds"])
    if not all(side in found for side in CONTESTANTS):
        return
    pairs = list(zip(found["ours"]["rounds"], found["trl"]["rounds"], strict=False))
    ratios = sorted(a["samples_per_s"] / b["samples_per_s"] for a, b in pairs)
    found |= {"ratio_low": ratios[0], "ratio_high": ratios[-1]}
    found["ratio"] = found["ours"]["median"]["samples_per_s"] / found["trl"]["median"]["samples_per_s"]
    if "limit" not in found:
        contest.wait_until_idle(10.0)
        found["limit"] = contest.limit(scene, task, found["ours"]["rounds"][0])
    found["shares"], found["utilisation"] = {}, {}
    for phase in ("step", "sample", "score", "update"):
        if alone := found["limit"].get(phase):
            spent = {side: seconds_of(phase, found[side]["median"]) for side in CONTESTANTS}
            # Answers differ in length from side to side; the limit is that of ours.
            less = {
                "ours": 1.0,
                "trl": found["trl"]["median"]["tokens_per_step"] / found["ours"]["median"]["tokens_per_step"],
            }
            found["shares"][phase] = {s: less[s] * alone["seconds"] / spent[s] for s in CONTESTANTS}
            if scene.device == "cuda":
                peak = found["limit"]["peak_gflops"]
                found["utilisation"][phase] = {s: less[s] * alone["gflop"] / spent[s] / peak for s in CONTESTANTS}


def seconds_of(phase: str, figures: Figures) -> float:
    """Seconds of a phase in one step."""
    return float(figures["step_s"] if phase == "step" else figures["phases_s"][phase])


def keep(scene: Scene, task: str, found: Figures) -> None:
    """Put a task's figures into the JSON file and the table; a short scene's stay on the screen."""
    if scene.name not in SCENES:
        for row in rows_of({scene.name.split("-")[0]: {task: found}}):
            say("    " + " | ".join(row))
        return
    path = report.RESULTS / "training.json"
    scenes = json.loads(path.read_text(encoding="utf-8"))["figures"]["scenes"] if path.exists() else {}
    scenes.setdefault(scene.name, {"about": scene.about, "settings": scene.tasks})[task] = found
    note = (
        f"{THREADS} threads; medians of interleaved rounds, one seed a round, steps after the first two; the figures "
        "in brackets are the least and the largest ratio of a round. How it is kept fair: "
        "[decisions/race-with-trl.md](decisions/race-with-trl.md)."
    )
    report.write("training", {"scenes": scenes}, rows_of(scenes), note)


def gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def say(text: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
