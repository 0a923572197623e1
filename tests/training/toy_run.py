"""A toy training loop in a real process: `python -m tests.training.toy_run RUN_DIR`, through app.training's own main.

It draws from every random generator, trains with Muon and AdamW, and can be slow enough to be killed on the way.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from app.core.configs import SFTConfig
from app.training import __main__ as entry
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import Shuffler
from app.training.run import Run

STEPS = 12


def train(run: Run[SFTConfig], pause: float = 0.0, steps: int = STEPS) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "inner": nn.Linear(6, 6), "out_head": nn.Linear(6, 9)})
    optimizer = MuonAdamW(model.named_parameters(), lr=0.01, muon_lr=0.01, weight_decay=0.01)
    order = Shuffler(9, run.spec.seed)
    state = run.restore()
    if state:
        model.load_state_dict(state.tree["model"])
        optimizer.load_state_dict(state.tree["optimizer"])
        order.load_state_dict(state.tree["order"])
    loss_value = 0.0
    for step in range(state.step + 1 if state else 1, steps + 1):
        tokens = torch.tensor(order.take(4))
        noise = torch.randn(4, 6) * random.random() * float(np.random.rand())
        hidden = torch.tanh(model["inner"](model["embed"](tokens))) + noise
        loss = nn.functional.cross_entropy(model["out_head"](hidden), (tokens + 1) % 9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(run.config.gradient_clip, lr_factor(step - 1, steps))
        loss_value = loss.item()
        time.sleep(pause)
        run.log(step, "train", loss=loss_value)
        run.sample(step, "p", f"answer {step}", loss_value)
        run.end_step(
            step,
            steps,
            "train",
            lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "order": order.state_dict()},
        )

    def save(folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")

    run.finish(save, {"loss": loss_value})


def main() -> int:
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

    def toy(run: Run[Any]) -> None:
        train(run, pause)

    entry._trainer = lambda kind: toy  # the toy stands in for every kind
    return entry.main([sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
