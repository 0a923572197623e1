"""A run directory, opened for training: what to do, where to log, how to stop, and how to go on after a kill.

A training loop uses it like this:

    state = run.restore()
    start = state.step if state else 0
    for step in range(start + 1, total + 1):
        ...                                              # one update
        run.log(step, "train", loss=loss)                # log a step before it is saved
        run.end_step(step, total, "train", lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    run.finish(lambda folder: save_policy(folder, model, tokenizer), {"loss": loss})
"""

import logging
import math
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from app.core.configs import CONFIGS, TrainConfig
from app.core.folders import sha256_of, sync, write_file, write_folder
from app.core.records import (
    DemonstrationRecord,
    PreferenceRecord,
    Progress,
    PromptRecord,
    Record,
    RunDir,
    RunError,
    RunResult,
    RunSpec,
)
from app.training.board import Board
from app.training.failures import Cancelled, RunFailure, problems
from app.training.logs import append, cut_back
from app.training.order import derived_seed
from app.training.processes import ALONE, World
from app.training.state import State, Tree, load_newest_state, load_state_of, save_state
from app.training.terminal import Terminal

C = TypeVar("C", bound=TrainConfig)
R = TypeVar("R", bound=Record)

logger = logging.getLogger("pairwright.training")


class Run(Generic[C]):
    """One run, opened from its directory. `config` is the typed configuration of the run's kind.

    Several processes may train it together (`world`): all make the same calls, and the main one writes. `device` is
    where this process computes.
    """

    def __init__(self, directory: RunDir, spec: RunSpec, config: C, world: World = ALONE) -> None:
        self.dir = directory
        self.spec = spec
        self.config = config
        self.world = world
        self.device = world.device(config.device)
        self._stop = False
        self._restored = False
        self._pace: deque[tuple[int, float]] = deque(maxlen=20)
        self._terminal = Terminal()
        self._board = Board(directory.tensorboard)

    @staticmethod
    def open(root: Path | str, world: World = ALONE) -> "Run[Any]":
        """Read and check the directory. RunFailure `config` or `data` names what is wrong with it."""
        directory = RunDir(Path(root).resolve())
        spec = _read_spec(directory)
        try:
            config = CONFIGS[spec.kind].model_validate(spec.config)
        except ValidationError as error:
            mend = "Correct spec.json: the fields of each kind of run stand in docs/training.md."
            raise RunFailure("config", f"The run's configuration is refused: {problems(error)}", mend) from error
        _check_data(directory, spec)
        run = Run(directory, spec, config, world)
        world.require_same("specification and kind of device", [spec.model_dump(mode="json"), run.device.type])
        return run

    # ---- reading -----------------------------------------------------------------------------------------------

    def prompts(self) -> list[PromptRecord]:
        """Every prompt of the run's data."""
        return self._records(self.dir.prompts, PromptRecord)

    def demonstrations(self) -> list[DemonstrationRecord]:
        """Every demonstration of the run's data."""
        return self._records(self.dir.demonstrations, DemonstrationRecord)

    def preferences(self) -> list[PreferenceRecord]:
        """Every counted judgment of the run's data."""
        return self._records(self.dir.preferences, PreferenceRecord)

    def folder(self, name: str | None, what: str) -> Path:
        """The existing folder that a field of the spec names, relative ones seen from the run directory."""
        path = self.dir.root / name if name else None
        if path is None or not path.is_dir():
            raise RunFailure(
                "config", f"The {what} is missing: {name or 'none was named'}.", f"Name the {what}'s folder."
            )
        return path

    def seed_everything(self) -> None:
        """Seed torch, Python and NumPy from the spec, and ask for deterministic kernels."""
        _seed(self.spec.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time, guards nothing here

    # ---- saying how it goes ------------------------------------------------------------------------------------

    def log(self, step: int, phase: str, **metrics: float) -> None:
        """Append one row to metrics.jsonl. Steps never decrease. What is not finite is logged as null."""
        if not self.world.main:
            return
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row: dict[str, Any] = {"step": step, "time": time.time(), "phase": phase, **finite}
        append(self.dir.metrics, row)
        self._board.metrics(row)

    def sample(self, step: int, prompt_id: str, completion: str, reward: float | None = None) -> None:
        """Append an answer to a prompt of the fixed set to samples.jsonl."""
        if not self.world.main:
            return
        row: dict[str, Any] = {"step": step, "prompt_id": prompt_id, "completion": completion}
        row |= {} if reward is None else {"reward": reward}
        append(self.dir.samples, row)
        self._board.sample(row)

    def progress(self, step: int, total: int, phase: str) -> None:
        """The heartbeat: replaced atomically, with the time left from the pace of the last steps of this process.

        The file appears after `restore` only: who sees it may read along, for the logs are not cut back any more.
        """
        if not self.world.main:
            return
        now = time.time()
        if not self._pace or step > self._pace[-1][0]:
            self._pace.append((step, now))
        (first, since), (last, until) = self._pace[0], self._pace[-1]
        left = (until - since) / (last - first) * (total - step) if last > first else None
        beat = Progress(step=step, total=total, phase=phase, seconds_left=left, time=now)
        if self._restored:
            write_file(self.dir.progress, beat.model_dump_json(), durable=False)
        self._terminal.show(step, total, phase, left)

    def require_finite(self, step: int, **values: float) -> None:
        """RunFailure `diverged` where a loss is NaN or infinite. Called before the weights are touched."""
        for name, value in values.items():
            if not math.isfinite(float(value)):
                mend = "Lower the learning rate, then resume from the newest checkpoint or start again."
                raise RunFailure("diverged", f"{name} became {float(value)} at step {step}.", mend)

    # ---- stopping and going on ---------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Stop after the current step, as if the cancel file had appeared."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether a checkpoint and a stop were asked for, of any of the processes: all call it, and all are told."""
        return self.world.any(self._stop or self.dir.cancel.exists())

    def end_step(self, step: int, total: int, phase: str, state: Callable[[], Mapping[str, Tree]]) -> None:
        """Close a step: heartbeat, a whole checkpoint each `checkpoint_every` steps, and the stop if one was asked for.

        `state()` gives all that the loop needs to go on after `step` steps (the random generators are added here).
        After the last step neither happens: what follows is `finish`. Raises Cancelled once the state is on disk.
        """
        self.progress(step, total, phase)
        stop = self.should_stop() and step < total
        if stop or (step % self.config.checkpoint_every == 0 and step < total):
            self.save_checkpoint(step, state())
        if stop:
            raise Cancelled(step)
        self._draw_apart(step)

    def save_checkpoint(self, step: int, state: Mapping[str, Tree]) -> None:
        """Write a whole state. The logged rows up to here reach the disk first, so a restored step is always logged."""
        if not self.world.main:
            return
        for path in (self.dir.metrics, self.dir.samples):
            if path.exists():
                sync(path)
        save_state(self.dir.checkpoints, State(step, dict(state)))

    def restore(self) -> State | None:
        """The newest whole state, None for a fresh start. Logs are cut back to its step; damage is said aloud.

        Every process goes on from the checkpoint that the main one chose.
        """
        state = self._newest_state() if self.world.main else None
        step = self.world.agreed(state.step if state else None)
        if step is not None and not self.world.main:
            state = load_state_of(self.dir.checkpoints, step)
        self._draw_apart(step or 0)
        self._restored = True
        return state

    def _newest_state(self) -> State | None:
        restored = load_newest_state(self.dir.checkpoints)
        step = restored.state.step if restored.state else -1
        for path in (self.dir.metrics, self.dir.samples):
            cut_back(path, step)
        self._board.begin(self.dir.metrics, self.dir.samples)
        for message in restored.damaged:
            logger.warning("checkpoint passed over: %s; going on from step %d", message, max(step, 0))
        if restored.damaged:
            self.log(max(step, 0), "restore", **{"checkpoint/damaged": len(restored.damaged)})
        if restored.state:
            logger.info("resumed from step %d", step)
        return restored.state

    def _draw_apart(self, step: int) -> None:
        """Let the other processes draw (dropout) from streams that seed, rank and step decide: nothing to be saved."""
        if not self.world.main:
            _seed(derived_seed(self.spec.seed, "process", self.world.rank, step))

    # ---- ending ------------------------------------------------------------------------------------------------

    def finish(self, save: Callable[[Path], None], metrics: Mapping[str, float | int | str | None]) -> None:
        """Put what `save(folder)` writes into final/ atomically, then write result.json and drop the checkpoints."""
        if self.world.main:
            write_folder(self.dir.final, save)
            step = self._pace[-1][0] if self._pace else 0
            self._end(RunResult(status="finished", step=step, metrics=dict(metrics)))
            shutil.rmtree(self.dir.checkpoints, ignore_errors=True)
        self.world.wait_for_main()

    def cancelled(self, step: int) -> None:
        """Write the result of a run that stopped because it was asked to."""
        if self.world.main:
            self._end(RunResult(status="cancelled", step=step, metrics={}))
        self.world.wait_for_main()

    def fail(self, error: RunError) -> None:
        """Write error.json."""
        self._terminal.close()
        write_error(self.dir, error)

    def _end(self, result: RunResult) -> None:
        self._terminal.close()
        write_file(self.dir.result, result.model_dump_json(indent=1) + "\n")

    def _records(self, path: Path, kind: type[R]) -> list[R]:
        if not path.exists():
            raise RunFailure("data", f"data/{path.name} is missing.", "Make the run again from its snapshot.")
        records = []
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    records.append(kind.model_validate_json(line))
                except ValidationError as error:
                    mend = "Make the run again from its snapshot, or correct the line."
                    raise RunFailure("data", f"data/{path.name} line {number}: {problems(error)}", mend) from error
        return records


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def write_error(directory: RunDir, error: RunError) -> None:
    """Write error.json; on a disk too full even for that, the log alone has it."""
    try:
        write_file(directory.error, error.model_dump_json(indent=1) + "\n")
    except OSError as failure:
        logger.error("error.json could not be written: %s", failure)


def _read_spec(directory: RunDir) -> RunSpec:
    mend = "Give the path of a run directory that holds a spec.json."
    try:
        return RunSpec.model_validate_json(directory.spec.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunFailure("config", f"{directory.spec} cannot be read: {error}", mend) from error
    except ValidationError as error:
        raise RunFailure("config", f"{directory.spec} is refused: {problems(error)}", mend) from error


def _check_data(directory: RunDir, spec: RunSpec) -> None:
    mend = "The run's data is not what was frozen: make the run again from its snapshot."
    for name, expected in spec.data_sha256.items():
        path = (directory.data / name).resolve()
        if not path.is_relative_to(directory.data) or not path.is_file():
            raise RunFailure("data", f"data/{name} is missing.", mend)
        if sha256_of(path) != expected:
            raise RunFailure("data", f"data/{name} has changed: its SHA-256 is not the one in spec.json.", mend)
