"""One optimizer object: Muon on the hidden matrices, AdamW on the rest, a schedule, and a state that is plain data."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from app.training.failures import RunFailure
from app.training.muon import Muon

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(update: int, total: int, warmup: int = 0, schedule: Schedule = "linear", floor: float = 0.0) -> float:
    """The share of the peak learning rate for the update number `update` (0-based) of `total`.

    Rises linearly over the first `warmup` updates (the first one already gets 1/warmup), then stays, falls linearly, or
    falls along half a cosine (Loshchilov & Hutter 2017) towards `floor`, which it would reach at `total`.
    """
    if update < warmup:
        return (update + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    left = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return floor + (1.0 - floor) * left


class MuonAdamW:
    """Muon (Jordan 2024) on matrices inside the network, AdamW (Loshchilov & Hutter 2019) on everything else.

    Embeddings, output heads, norms and biases always go to AdamW; so does everything where `muon_lr` is None. Muon's
    step is scaled by 0.2 sqrt(max(rows, columns)), which gives it AdamW's size of update (Liu et al. 2025, eq. 4), so
    both rates are on one scale. Weight decay touches matrices only.

    `params` are (name, parameter) pairs, usually `model.named_parameters()`; state is kept and saved by name.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        muon_lr: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        self._params = {name: p for name, p in params if p.requires_grad}
        muon = {n: p for n, p in self._params.items() if muon_lr is not None and is_hidden_matrix(n, p)}
        decayed = [p for n, p in self._params.items() if n not in muon and p.ndim >= 2]
        plain = [p for n, p in self._params.items() if n not in muon and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if decayed or plain:
            # In one pass over the weights: on a CPU several times as fast as a pass for each of its ten operations.
            fused = all(p.device.type == "cpu" for p in (*decayed, *plain)) or None
            adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=fused)
            self._optimizers.append((adamw, lr))
        if muon and muon_lr is not None:
            hidden = Muon(muon.values(), lr=muon_lr, weight_decay=weight_decay, momentum=momentum)
            self._optimizers.append((hidden, muon_lr))
        self.updates = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns, in the order in which it was given."""
        return list(self._params.values())

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer, _ in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, clip: float, factor: float = 1.0) -> float:
        """Clip the gradient to the norm `clip`, update at `factor` times the peak rates, and return the norm before.

        A norm that is not finite is RunFailure `diverged`, raised before any weight is touched.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._params.values(), clip))
        if not math.isfinite(norm):
            mend = "Lower the learning rate, then resume from the newest checkpoint or start again."
            raise RunFailure("diverged", f"The gradient norm became {norm} at update {self.updates + 1}.", mend)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.updates += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "state": {parameter name: {buffer name: tensor}}}: strings, numbers and tensors only."""
        state = {
            name: dict(o.state[p]) for o, _ in self._optimizers for name, p in self._params.items() if p in o.state
        }
        return {"updates": self.updates, "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, for parameters of the same names."""
        self.updates = saved["updates"]
        for optimizer, _ in self._optimizers:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, buffers in saved["state"].items():
                parameter = self._params[name]
                if id(parameter) in owned:
                    optimizer.state[parameter] = {key: _like(value, parameter, key) for key, value in buffers.items()}


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may have it: a matrix that maps hidden to hidden, not an embedding and not a head."""
    ends = ("embed", "lm_head", "wte", "wpe", "score", "head")
    return parameter.ndim == 2 and min(parameter.shape) > 1 and not any(end in name.lower() for end in ends)


def _like(value: Tensor, parameter: nn.Parameter, key: str) -> Tensor:
    # AdamW counts its steps on the CPU whatever the device.
    return value.clone() if key == "step" else value.to(parameter.device, copy=True)
