"""`python -m app.training RUN_DIR`: run, or go on with, the directory that a snapshot and a spec were put into.

`torchrun -m app.training RUN_DIR`, or `accelerate launch -m`, does it in several processes (app.training.processes).

Exit codes: 0 finished, 3 stopped because it was asked to, 4 could not go on (error.json says why).
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from app.core.records import RunDir, RunError, RunResult
from app.core.vocabulary import RunKind
from app.training.environment import record_attempt
from app.training.failures import Cancelled, RunFailure, explain
from app.training.processes import World, join
from app.training.run import Run, write_error

FINISHED, CANCELLED, FAILED = 0, 3, 4

logger = logging.getLogger("pairwright.training")


def main(arguments: list[str] | None = None) -> int:
    """Run one directory to its end; the answer is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app.training", description="Train what a run directory describes.")
    parser.add_argument("run_dir", type=Path, help="a directory with spec.json and data/")
    root: Path = parser.parse_args(arguments).run_dir
    world = join()
    _log_to(root)
    _tell_apart(world)
    directory = RunDir(root)
    ended = world.agreed(_result(directory) if world.main else None)
    if ended == "finished":
        logger.info("this run has already finished: its model is in %s", directory.final)
        world.leave()
        return FINISHED
    if world.main:
        if ended == "cancelled":
            # That cancel was obeyed; starting again means going on.
            directory.cancel.unlink(missing_ok=True)
            directory.result.unlink()
        directory.error.unlink(missing_ok=True)

    run: Run[Any] | None = None
    try:
        run = Run.open(root, world)
        if run.config.threads:
            torch.set_num_threads(run.config.threads)
        run.seed_everything()
        _stop_on_signals(run)
        logger.info(
            "%s run %s, seed %d, %d threads", run.spec.kind, run.spec.run_id, run.spec.seed, torch.get_num_threads()
        )
        if world.size > 1 or run.device.type != "cpu":
            logger.info("%d processes, on %s", world.size, run.device.type)
        if world.main:
            record_attempt(run.dir, run.spec.seed, run.device, world.size)
        _trainer(run.spec.kind)(run)
    except Cancelled as stop:
        assert run is not None
        run.cancelled(stop.step)
        logger.info("stopped at step %d as asked; start it again to go on", stop.step)
        world.leave()
        return CANCELLED
    except BaseException as failure:
        error = explain(failure)
        logger.error("%s %s", error.message, error.mend, exc_info=None if isinstance(failure, RunFailure) else failure)
        world.fail(FAILED, error.model_dump_json(), partial(_say, run, directory))
        return FAILED
    logger.info("finished: %s", directory.final)
    world.leave()
    return FINISHED


def _say(run: Run[Any] | None, directory: RunDir, cause: str) -> None:
    error = RunError.model_validate_json(cause)
    if run is not None:
        run.fail(error)
    elif directory.root.is_dir():
        write_error(directory, error)


def _trainer(kind: RunKind) -> Callable[[Run[Any]], None]:
    """The loop of a kind, imported only when it is wanted: `app.training.{sft,reward,ppo}.train(run)`."""
    trainer: Callable[[Run[Any]], None] = import_module(f"app.training.{kind.value}").train
    return trainer


def _result(directory: RunDir) -> str | None:
    if not directory.result.exists():
        return None
    return RunResult.model_validate_json(directory.result.read_text(encoding="utf-8")).status


def _stop_on_signals(run: Run[Any]) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        run.request_stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _log_to(root: Path) -> None:
    """Log to stderr, which a launcher points at log.txt; in a terminal to log.txt as well."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if sys.stderr.isatty() and root.is_dir():
        handlers.append(logging.FileHandler(root / "log.txt", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)


def _tell_apart(world: World) -> None:
    """Of several processes each names itself in the log; but for the main one they say errors only, for all find the
    same to say."""
    if world.size > 1:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s process {world.rank}: %(message)s"))
        logging.getLogger().setLevel(logging.INFO if world.main else logging.ERROR)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a trainer fetches nothing: its directory is all it sees
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it a GPU's products do not repeat
    sys.exit(main())
