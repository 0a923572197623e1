"""One contestant's run: a quiet machine, a process of its own, a time limit, and what it cost."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import ROOT
from benchmarks.training import environment
from benchmarks.training.scenes import BUILD, SKIP, Scene

Figures = dict[str, Any]
QUIET_LOAD = 0.7
LONGEST_S = 1_500.0
_TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A contestant's process ended badly; the message has the end of its log."""


def wait_until_quiet(bound_s: float = 240.0) -> Figures:
    """Wait for a load average under QUIET_LOAD, at most `bound_s`; what it was in the end."""
    started = time.monotonic()
    while (load := os.getloadavg()[0]) >= QUIET_LOAD and time.monotonic() - started < bound_s:
        time.sleep(2)
    return {"load": round(load, 2), "waited_s": round(time.monotonic() - started)}


def wait_until_idle(bound_s: float = 60.0, wanted: float = 0.1, span_s: float = 2.0) -> float:
    """Wait until the cores are idle now, which the load average tells late; how many were busy in the end."""
    started = time.monotonic()
    while True:
        before, since = _busy(), time.monotonic()
        time.sleep(span_s)
        busy = (_busy() - before) / (time.monotonic() - since)
        if busy < wanted or time.monotonic() - started > bound_s:
            return round(busy, 2)


def run(scene: Scene, task: str, contestant: str, seed: int, knobs: Mapping[str, Any], judged: bool = False) -> Figures:
    """One run. `knobs` are the contestant's own settings; `judged` has its model measured too.

    Failed where the process ends badly or takes too long, environment.Missing where the contestant cannot run here.
    """
    knobs = dict(knobs)
    spin = knobs.pop("spin", "ours")
    module, python, version = "ours", None, None
    if contestant != "ours":
        python, version = environment.python_for(task)
        module = "theirs"
    BUILD.mkdir(parents=True, exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix=f"{scene.name}-{task}-{contestant}-", dir=BUILD))
    try:
        job = {
            "task": task,
            "scene": str(scene.folder),
            "device": scene.device,
            "seed": seed,
            "settings": scene.tasks[task],
            "knobs": knobs,
            "out": str(out),
        }
        (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
        variables = environment.variables(spin)
        cost = process([f"benchmarks.training.{module}", str(out / "job.json")], variables, out / "log.txt", python)
        notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
        figures = {"seed": seed, "trl": version, **cost, **summary(scene, task, seed, notes), "notes": notes}
        if judged:
            figures["quality"] = judge(scene, task, out / "final")
        return figures
    finally:
        shutil.rmtree(out, ignore_errors=True)


def process(
    words: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    python: str | None = None,
    longest_s: float = LONGEST_S,
) -> Figures:
    """Run a module; seconds, CPU seconds, the most resident memory, and how many cores others used meanwhile."""
    command = [python or environment.sys.executable, "-m", *words]
    before, started = _busy(), time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(command, cwd=ROOT, env=dict(variables), stdout=output, stderr=subprocess.STDOUT)
        while True:
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() - started > longest_s:
                child.kill()
                os.wait4(child.pid, 0)
                raise Failed(f"{words[0]} did not end within {longest_s:.0f} s\n{_end(log)}")
            time.sleep(0.1)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    if child.returncode:
        raise Failed(f"{words[0]} ended with {child.returncode}\n{_end(log)}")
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mib": usage.ru_maxrss / 1024,
        "others_cores": round(max(0.0, _busy() - before - cpu) / wall, 2),
    }


def limit(scene: Scene, task: str, ours: Figures) -> Figures:
    """What the matrix products of one step of ours reach alone, by phase, and the phases' shares of it."""
    settings, notes, steps = scene.tasks[task], ours["notes"], len(ours["notes"]["seconds"])
    trained = notes["passes"]["trained"]
    # A trainer that calls no forward of transformers' tells nothing of its passes.
    rows = trained["rows"] / trained["passes"] if trained["passes"] else 16.0
    rows_per_step = settings["batch"] * (1 if task in ("sft", "ppo") else 2)
    passes = rows_per_step / rows
    width = ours["tokens_per_step"] / rows_per_step
    answers = ours["answer_tokens_per_step"] / passes
    policy, reference = ([rows, width, answers, True, trained] for trained in (True, False))
    value, expects = ([rows, width, answers, False, trained] for trained in (True, False))
    reward, judge = ([rows, width, rows, False, trained] for trained in (True, False))  # by their last tokens
    phases: dict[str, list[Any]]
    decode = None
    if task == "ppo":
        again = passes * settings["epochs"]
        phases = {
            "score": [[2 * passes, reference], [passes, expects], [passes, judge]],
            "update": [[again, policy], [again, value]],
        }
        if notes.get("columns"):
            columns = notes["columns"] / notes["batches"]
            alive = ours["answer_tokens_per_step"] / columns
            prompt = width - ours["answer_tokens_per_step"] / rows_per_step
            decode = {"rows": rows_per_step, "prompt": prompt, "steps": columns, "alive": alive}
    else:
        phases = {"step": [[passes, policy if task != "reward" else reward]]}
        if task == "dpo":
            phases["step"].append([passes, reference])
    job = {"model": str(scene.folder / "policy"), "device": scene.device, "phases": phases, "decode": decode}
    with tempfile.NamedTemporaryFile("w", dir=BUILD, suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        return helper("limit", file.name) | {"steps": steps}


def judge(scene: Scene, task: str, model: Path) -> Figures:
    """What a model is worth, measured the same way for either side."""
    return helper("quality", task, str(scene.folder), str(model))


def helper(module: str, *words: str) -> Figures:
    """What a module of this package says, as JSON, in its last line; nothing where it says nothing."""
    variables = environment.variables("ours")
    with tempfile.NamedTemporaryFile(dir=BUILD, suffix=".log") as log:
        process([f"benchmarks.training.{module}", *words], variables, Path(log.name))
        last = Path(log.name).read_text(encoding="utf-8").strip().rpartition("\n")[2]
        return dict(json.loads(last)) if last.startswith("{") else {}


def summary(scene: Scene, task: str, seed: int, notes: Figures) -> Figures:
    """Speeds over the steps after the first SKIP."""
    settings = scene.tasks[task]
    skip = min(SKIP, len(notes["seconds"]) - 1)
    seconds = notes["seconds"][skip:]
    # What was done beforehand is part of every step.
    spent = sum(seconds) + notes.get("beforehand_s", 0.0) * len(seconds) / len(notes["seconds"])
    counts = json.loads((scene.folder / "tokens.json").read_text(encoding="utf-8"))[task][str(seed)][skip:]
    answers = sum(notes["sampled"][skip:]) if task == "ppo" else sum(n for _, n in counts)
    tokens = sum(n for n, _ in counts) + (answers if task == "ppo" else 0)
    phases = {
        name: sum(step.get(name, 0.0) for step in notes["phases"][skip:]) / len(seconds)
        for name in sorted({name for step in notes["phases"] for name in step})
    }
    if task != "ppo":
        phases["the rest"] = spent / len(seconds) - sum(phases.values())
    return {
        "samples_per_s": len(seconds) * settings["batch"] / spent,
        "tokens_per_s": tokens / spent,
        "tokens_per_step": tokens / len(seconds),
        "step_s": spent / len(seconds),
        "phases_s": phases,
        "answer_tokens_per_step": answers / len(seconds),
    }


def medians(rounds: Sequence[Figures]) -> Figures:
    """The middle round of every figure that is a plain number, and of each phase."""
    if not rounds:
        return {}
    names = [name for name, value in rounds[0].items() if isinstance(value, float)]
    middle: Figures = {name: median(r[name] for r in rounds) for name in names}
    middle["phases_s"] = {name: median(r["phases_s"].get(name, 0.0) for r in rounds) for name in rounds[0]["phases_s"]}
    return middle


def _busy() -> float:
    """CPU seconds used by everybody since the machine started; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / _TICK


def _end(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
