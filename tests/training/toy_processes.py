"""Several processes on one machine, as a launcher starts them, and what they train in the tests.

The processes are forked from a server that has imported torch once: they start in a blink. What they are told is what
torchrun tells: rank, size and a port, by their environment.
"""

import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.configs import SFTConfig
from app.training import __main__ as entry
from app.training.failures import RunFailure
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import Shuffler
from app.training.processes import join
from app.training.run import Run

STEPS, ROWS = 8, 5


def launch(size: int, target: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start `target(*arguments)` in `size` processes that find each other; one alone is told nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["app.training.sft", "app.training.dpo", "app.training.ppo", "app.training.reward"])
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    processes = [context.Process(target=_start, args=(rank, size, port, target, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[BaseProcess], seconds: float = 90) -> list[int | None]:
    """Exit codes; a process that is not over in time is killed, and its code is that."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def train(root: Path) -> None:
    """`python -m app.training ROOT`."""
    sys.exit(entry.main([str(root)]))


def train_toy(root: Path, pause: float = 0.0, fault: str = "", patience: float = 60.0) -> None:
    """The same with the loop below in the place of every kind's. `fault` strikes the second process at step 4."""
    entry._trainer = lambda kind: lambda run: toy(run, pause, fault)
    entry.join = lambda: join(timedelta(seconds=patience))  # type: ignore[attr-defined]
    sys.exit(entry.main([str(root)]))


def toy(run: Run[SFTConfig], pause: float, fault: str) -> None:
    """Each process learns from its rows of a batch of 5, under noise of its own, as dropout is."""
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "inner": nn.Linear(6, 6), "out_head": nn.Linear(6, 9)})
    optimizer = MuonAdamW(model.named_parameters(), lr=0.01, muon_lr=0.01)
    order = Shuffler(9, run.spec.seed)
    state = run.restore()
    if state:
        model.load_state_dict(state.tree["model"])
        optimizer.load_state_dict(state.tree["optimizer"])
        order.load_state_dict(state.tree["order"])
    for step in range(state.step + 1 if state else 1, STEPS + 1):
        time.sleep(pause)
        if run.world.rank == 1 and step == 4:
            strike(fault)
        tokens = torch.tensor(run.world.share(order.take(ROWS)))
        noise = torch.randn(len(tokens), 6) * random.random()
        hidden = torch.tanh(model["inner"](model["embed"](tokens))) + noise
        loss = nn.functional.cross_entropy(model["out_head"](hidden), (tokens + 1) % 9, reduction="sum") / ROWS
        optimizer.zero_grad()
        loss.backward()
        run.world.sum_gradients(optimizer.parameters)
        optimizer.step(run.config.gradient_clip, lr_factor(step - 1, STEPS))
        run.log(step, "train", **run.world.sum({"loss": loss.item()}))
        run.end_step(
            step,
            STEPS,
            "train",
            lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "order": order.state_dict()},
        )
    run.finish(lambda folder: save_file(model.state_dict(), folder / "model.safetensors"), {})


def strike(fault: str) -> None:
    if fault == "raise":
        raise RunFailure("data", "Row 7 of the second process is torn.", "Mend row 7.")
    if fault == "kill":
        os.kill(os.getpid(), 9)
    if fault == "hang":
        time.sleep(60)


def help_out(folder: Path) -> None:
    """What World's methods give in this process, as JSON in `folder`."""
    world = join(timedelta(seconds=60))
    rank = world.rank
    everywhere, some, nowhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    everywhere.grad = torch.tensor([1.0, 10.0]) * (rank + 1)
    if rank == 2:
        some.grad = torch.tensor([0.5, -0.5])
    world.sum_gradients([everywhere, some, nowhere])

    def listed(gradient: Tensor | None) -> list[float] | None:
        return None if gradient is None else gradient.tolist()

    try:
        world.require_same("colour", "red" if rank else "blue")
        refused = ""
    except RunFailure as failure:
        refused = failure.error.message
    found = {
        "share": world.share(list("abcdefg")),
        "mine": world.mine(torch.tensor([5, 5, 9, 2, 9])).tolist(),
        "spread": world.spread([1, 2], lambda own: [[n * 0.1, f"of {rank}"] for n in own]),
        "gradients": [listed(p.grad) for p in (everywhere, some, nowhere)],
        "sum": world.sum({"loss": 0.25, "worst": float(rank % 2)} | ({"rare": 3.0} if rank == 2 else {}), ["worst"]),
        "total": world.total(torch.tensor([0.0, 1.0]) if rank == 1 else torch.tensor([2.0, 0.0])).tolist(),
        "agreed": world.agreed(0.1 + 0.2 * rank),
        "any": [world.any(rank == 2), world.any(False)],
        "refused": refused,
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    world.leave()


def _start(rank: int, size: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    target(*arguments)
