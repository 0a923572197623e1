"""`python -m benchmarks.training.ours JOB.json`: one of our runs: `python -m app.training` with a watch on it."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from app.core import configs
from app.core.records import RunDir, RunSpec
from app.core.vocabulary import RunKind
from app.policy import hidden
from app.policy.decoders import LlamaDecoder
from app.training.__main__ import main as train
from app.training.run import Run
from benchmarks.training.scenes import THREADS, Settings
from benchmarks.training.watch import Watch

NEVER = 10**6
QUIET = {"log_every": 10, "checkpoint_every": NEVER, "threads": THREADS}


def configuration(task: str, settings: Settings, device: str) -> dict[str, Any]:
    """The run's configuration: the race's settings, and everything that TRL does not do switched off."""
    shared = {**QUIET, "learning_rate": settings["learning_rate"], "batch_size": settings["batch"]}
    if task == "sft":
        config = {
            **shared,
            "max_steps": settings["steps"],
            "muon_learning_rate": 0,
            "warmup_steps": settings["warmup"],
            "copy_weight": 1,
            "curriculum": 0,
            "sharpness": 1,
            "max_length": 2048,
            "eval_every": NEVER,
            "eval_rows": 1,
            "sample_prompts": 0,
        }
    elif task == "reward":
        config = {
            **shared,
            "kind": "head",
            "pooling": "last",
            "warmup_share": _share(settings),
            "max_length": 2048,
            "anchor_demonstrations": 0,
        }
    elif task == "dpo":
        config = {**shared, "beta": settings["beta"], "max_length": 2048, **_dpo(settings)}
    else:
        config = {
            **shared,
            "log_every": 1,
            "iterations": settings["steps"],
            "epochs": settings["epochs"],
            "minibatches": settings["minibatches"],
            "max_tokens": settings["max_tokens"],
            "value_learning_rate": settings["value_learning_rate"],
            "warmup_iterations": settings["warmup"],
            "schedule_floor": settings["floor"],
            "beta": settings["beta"],
            "value_warmup": 0,
            "kl_budget": None,
            "approx_kl_stop": None,
            "sample_prompts": 0,
            "evaluation_prompts": 1,
        }
    if device != "cpu":
        config |= _on_device(configs.CONFIGS[RunKind(task)])
    return config


def _share(settings: Settings) -> float:
    # A little more than the exact share: `int(share * steps)` is then the number of steps.
    return (settings["warmup"] + 0.01) / settings["steps"]


def _dpo(settings: Settings) -> dict[str, Any]:
    """What a DPO run calls the rest of it."""
    fields = configs.CONFIGS[RunKind("dpo")].model_fields
    rest: dict[str, Any] = {
        "epochs": 1,
        "warmup_share": _share(settings),
        "warmup_steps": settings["warmup"],
        "eval_every": NEVER,
        "evaluate_every": NEVER,
        "sample_prompts": 0,
        "sample_every": NEVER,
    }
    return {name: value for name, value in rest.items() if name in fields}


def _on_device(config: type[configs.TrainConfig]) -> dict[str, Any]:
    """The fields by which a run is told to use a GPU in bf16, as far as this tree has them."""
    wanted = {"device": "cuda", "precision": "bf16", "dtype": "bf16"}
    return {name: value for name, value in wanted.items() if name in config.model_fields}


def main() -> None:
    """Write the run directory, run it, and leave notes.json beside it."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    task, settings, scene, out = job["task"], job["settings"], Path(job["scene"]), Path(job["out"])
    directory = RunDir(out / "run")
    directory.data.mkdir(parents=True)
    for name in ("demonstrations", "preferences", "prompts"):
        shutil.copy(scene / f"{name}.jsonl", directory.data)
    config = configuration(task, settings, job["device"]) | job["knobs"]
    spec = RunSpec(
        run_id="race",
        kind=RunKind(task),
        seed=job["seed"],
        config=config,
        policy=str(scene / settings["start"]),
        reward_model=str(scene / "reward") if task == "ppo" else None,
    )
    directory.spec.write_text(spec.model_dump_json(), encoding="utf-8")

    watch = Watch()
    watch.usual()
    watch.after(Run, "restore", lambda _: watch.ready())
    watch.after(Run, "end_step", lambda _: watch.step())
    # How many columns were sampled, for the limit of what products of so few rows can reach.
    columns = {"columns": 0, "batches": 0}
    watch.after(LlamaDecoder, "step", lambda _: columns.update(columns=columns["columns"] + 1))
    watch.after(LlamaDecoder, "prefill", lambda _: columns.update(batches=columns["batches"] + 1))
    watch_passes(watch)
    if task == "dpo":
        read_beforehand(watch, settings, scene)
    code = train([str(directory.root)])
    if code == 0:
        watch.figures |= {"result": json.loads(directory.result.read_text(encoding="utf-8"))["metrics"]}
        if task == "ppo":
            watch.figures |= ppo_figures(directory, watch)
        directory.final.rename(out / "final")
    watch.figures |= columns
    watch.write(out / "notes.json")
    shutil.rmtree(directory.root)
    sys.exit(code)


def watch_passes(watch: Watch) -> None:
    """Count the passes that do not go through transformers' own forward."""
    computed = hidden._computed

    def counted(body: Any, ids: Any, *rest: Any) -> Any:
        watch.passed(ids.shape)
        return computed(body, ids, *rest)

    hidden._computed = counted


def read_beforehand(watch: Watch, settings: Settings, scene: Path) -> None:
    """Count the reference's pass over the train judgments, which comes before the first update, as part of all updates.

    It reads the held-out ones as well, for figures that TRL does not log: their share is left out.
    """
    from app.training import dpo

    original = dpo.reference_logprobs
    lines = len((scene / "preferences.jsonl").read_text(encoding="utf-8").splitlines())

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        answer = original(*args, **kwargs)
        watch.figures["beforehand_s"] = (time.perf_counter() - started) * settings["steps"] * settings["batch"] / lines
        return answer

    dpo.reference_logprobs = timed


def ppo_figures(directory: RunDir, watch: Watch) -> dict[str, Any]:
    """Phases of each iteration by the run's own clock, what it logged of its policy, and the tokens it sampled."""
    rows = [json.loads(line) for line in directory.metrics.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["phase"] == "train"]
    for phases, row in zip(watch.phases, rows, strict=True):
        phases |= {name: row[f"time/{name}"] for name in ("sample", "score", "update")}
    batch = json.loads(directory.spec.read_text(encoding="utf-8"))["config"]["batch_size"]
    return {
        "sampled": [round(row["completions/mean_length"] * batch) for row in rows],
        "trajectory": [[row["objective/kl"], row["objective/scores"]] for row in rows],
    }


if __name__ == "__main__":
    main()
