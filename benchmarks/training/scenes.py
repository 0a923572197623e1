"""What the race is run on. Everything that could favour a side stands here and is read by both."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.report import ROOT

TASKS = ("sft", "reward", "dpo", "ppo")
BUILD = ROOT / "build" / "race"
THREADS = int(os.environ.get("PAIRWRIGHT_BENCH_THREADS", "2"))
SKIP = 2
"""Steps at the beginning of a run that warm up and are not timed."""

Settings = dict[str, Any]


class Shape(NamedTuple):
    """A Llama of random weights; `vocabulary` 0 is the starter tokenizer's own."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 0


@dataclass(frozen=True)
class Scene:
    """A model, its data, and the settings of each task."""

    name: str
    about: str
    shape: Shape | None
    """None: the starter, as `benchmarks.starter` leaves it."""
    tasks: dict[str, Settings]
    rounds: int = 3
    device: Literal["cpu", "cuda"] = "cpu"
    judged: bool = False
    """Whether the models that come out are compared: random weights have nothing to say."""
    letters: int = 1
    """Letters in one conversation: more make longer rows."""
    heldout: int = 512
    """Held-out demonstrations, judgments and prompts."""

    @property
    def folder(self) -> Path:
        """Where its weights and data lie."""
        return BUILD / self.name

    def short(self, name: str, steps: dict[str, int], heldout: int = 64) -> "Scene":
        """The same in few steps and one round, under the name SCENE-NAME."""
        tasks = {
            task: {**settings, "steps": steps[task], "warmup": min(settings["warmup"], steps[task] // 2)}
            for task, settings in self.tasks.items()
        }
        return replace(self, name=f"{self.name}-{name}", tasks=tasks, rounds=1, heldout=heldout)


STARTER = Scene(
    name="starter",
    about="the starter, 1.6 M parameters, fp32, two threads",
    shape=None,
    judged=True,
    tasks={
        # From untrained weights, so that the loss has a long way to go.
        "sft": {"start": "fresh", "steps": 100, "batch": 32, "learning_rate": 2e-3, "warmup": 10},
        "reward": {"start": "policy", "steps": 68, "batch": 16, "learning_rate": 3e-4, "warmup": 3},
        "dpo": {"start": "policy", "steps": 68, "batch": 16, "learning_rate": 1e-4, "warmup": 7, "beta": 0.1},
        "ppo": {
            "start": "policy",
            "steps": 16,
            "batch": 64,
            "epochs": 2,
            "minibatches": 4,
            "max_tokens": 96,
            "learning_rate": 2e-4,
            "value_learning_rate": 5e-4,
            "warmup": 3,
            "floor": 0.1,
            "beta": 0.1,
        },
    },
)

SMALL = Scene(
    name="15m",
    about="a Llama of 15 M random weights, fp32, two threads",
    shape=Shape(hidden=448, intermediate=1216, layers=6, heads=7, kv_heads=7),
    rounds=2,
    tasks={
        "sft": {"start": "policy", "steps": 14, "batch": 32, "learning_rate": 2e-4, "warmup": 2},
        "reward": {"start": "policy", "steps": 12, "batch": 16, "learning_rate": 2e-5, "warmup": 1},
        "dpo": {"start": "policy", "steps": 12, "batch": 16, "learning_rate": 2e-5, "warmup": 1, "beta": 0.1},
        "ppo": {
            "start": "policy",
            "steps": 5,
            "batch": 32,
            "epochs": 2,
            "minibatches": 4,
            "max_tokens": 48,
            "learning_rate": 2e-5,
            "value_learning_rate": 2e-5,
            "warmup": 1,
            "floor": 0.1,
            "beta": 0.1,
        },
    },
)

LARGE = Scene(
    name="gpu",
    about="a Llama of 0.5 B random weights, bf16, one GPU",
    shape=Shape(hidden=1024, intermediate=4096, layers=28, heads=16, kv_heads=8, vocabulary=65_536),
    rounds=2,
    device="cuda",
    letters=6,
    heldout=64,
    tasks={
        "sft": {"start": "policy", "steps": 30, "batch": 32, "learning_rate": 2e-5, "warmup": 2},
        "reward": {"start": "policy", "steps": 30, "batch": 16, "learning_rate": 1e-5, "warmup": 1},
        "dpo": {"start": "policy", "steps": 30, "batch": 16, "learning_rate": 1e-6, "warmup": 1, "beta": 0.1},
        "ppo": {
            "start": "policy",
            "steps": 6,
            "batch": 64,
            "epochs": 2,
            "minibatches": 4,
            "max_tokens": 128,
            "learning_rate": 1e-6,
            "value_learning_rate": 1e-6,
            "warmup": 1,
            "floor": 0.1,
            "beta": 0.1,
        },
    },
)

SCENES = {scene.name: scene for scene in (STARTER, SMALL, LARGE)}
SHORT = {
    "quick": {"sft": 6, "reward": 6, "dpo": 6, "ppo": 4},  # shows that everything runs, measures nothing
    "sweep": {"sft": 16, "reward": 16, "dpo": 16, "ppo": 4},  # compares settings of TRL
}


def scene_of(name: str) -> Scene:
    """The scene of a name: `starter`, or a short form of it, `starter-quick`."""
    base, _, form = name.partition("-")
    return SCENES[base].short(form, SHORT[form]) if form else SCENES[base]
