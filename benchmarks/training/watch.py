"""The clocks and scales inside a contestant's process: the same few hooks on either side, each a microsecond."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers.models.llama.modeling_llama import LlamaModel


class Watch:
    """Notes when each step ended, and how much of it went into what.

    Of a phase only the outermost call counts. On a GPU the queue is emptied before every reading.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []
        self.phases: list[dict[str, float]] = []
        self.figures: dict[str, Any] = {}
        self._now: dict[str, float] = defaultdict(float)
        self._open: set[str] = set()
        self._mark = self.began
        self._passes: dict[str, list[int]] = {"trained": [0, 0, 0], "read": [0, 0, 0]}
        self._started_at = 0.0

    def usual(self) -> None:
        """Watch what every trainer has: backward passes, optimizer steps, gradient clipping, and Llama's forward."""
        self.time(torch.Tensor, "backward", "backward")
        self.time(torch.nn.utils, "clip_grad_norm_", "optimizer")

        def before(*_: Any) -> None:
            self._started_at = self._clock()

        def after(*_: Any) -> None:
            self._now["optimizer"] += self._clock() - self._started_at

        register_optimizer_step_pre_hook(before)
        register_optimizer_step_post_hook(after)
        forward = LlamaModel.forward

        @wraps(forward)
        def counted(model: Any, input_ids: Any = None, *rest: Any, **more: Any) -> Any:
            self.passed(input_ids.shape if input_ids is not None else more["inputs_embeds"].shape)
            return forward(model, input_ids, *rest, **more)

        LlamaModel.forward = counted  # type: ignore[method-assign]

    def passed(self, shape: torch.Size) -> None:
        """Count a pass over [rows, columns] tokens."""
        if shape[1] > 1:  # one column is a step of generation
            passes = self._passes["trained" if torch.is_grad_enabled() else "read"]
            for i, n in enumerate((1, shape[0], shape[0] * shape[1])):
                passes[i] += n

    def time(self, owner: Any, name: str, phase: str) -> None:
        """Add the time of every call of `owner.name` to `phase`."""
        original = getattr(owner, name)

        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if phase in self._open:
                return original(*args, **kwargs)
            self._open.add(phase)
            started = self._clock()
            try:
                return original(*args, **kwargs)
            finally:
                self._now[phase] += self._clock() - started
                self._open.discard(phase)

        setattr(owner, name, timed)

    def after(self, owner: Any, name: str, then: Callable[[Any], None]) -> None:
        """Call `then(result)` after every call of `owner.name`."""
        original = getattr(owner, name)

        @wraps(original)
        def followed(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            then(result)
            return result

        setattr(owner, name, followed)

    def mark(self, phase: str) -> None:
        """Everything since the last mark, or the last step, was `phase`."""
        now = self._clock()
        self._now[phase] += now - self._mark
        self._mark = now

    def ready(self) -> None:
        """The training loop is about to begin: models, optimizer and data are in memory."""
        self.figures["resident_before_mib"] = resident()[0]
        self._now.clear()
        self.began = self._mark = self._clock()

    def step(self) -> None:
        """A step has ended."""
        now = self._clock()
        self.ends.append(now)
        self.phases.append(dict(self._now))
        self._now.clear()
        self._mark = now
        self.figures["resident_peak_mib"] = resident()[1]

    def write(self, path: Path) -> None:
        """Leave the notes as JSON: seconds of each step and of its phases, passes, memory."""
        edges = [self.began, *self.ends]
        if torch.cuda.is_available():
            self.figures["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        notes = {
            "seconds": [b - a for a, b in pairwise(edges)],
            "phases": self.phases,
            "passes": {k: dict(zip(("passes", "rows", "cells"), v, strict=True)) for k, v in self._passes.items()},
            "threads": torch.get_num_threads(),
            **self.figures,
        }
        path.write_text(json.dumps(notes), encoding="utf-8")

    @staticmethod
    def _clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def resident() -> tuple[float, float]:
    """Resident memory of this process now, and the most it ever was, in MiB; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0, 0.0
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return float(lines["VmRSS"].split()[0]) / 1024, float(lines["VmHWM"].split()[0]) / 1024
