"""Muon's update of many matrices at once, in the precision that the device multiplies fast.

torch's own Muon orthogonalises one matrix after the other, and always in bf16. For that a CPU without instructions for
bf16 takes more than ten times as long as in fp32: on such a machine the starter's training took half an hour.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315
STEPS = 5
EPS = 1e-7
MOST = 1 << 23
"""Numbers of the matrices treated together, 32 MiB in fp32: for large ones as much memory as for one by itself."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Jordan 2024), at 0.2 sqrt(max(rows, columns)) x lr (Liu et al. 2025, eq. 4).

    The same arithmetic and state as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, for matrices only; weight
    decay is decoupled.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every matrix that has a gradient; the closure, if any, is called first."""
        loss = closure() if closure else None
        for group in self.param_groups:
            alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = min(parameter.shape), max(parameter.shape)
                    alike[shape, parameter.device, parameter.dtype].append(parameter)
            for ((rows, columns), *_), some in alike.items():
                size = max(1, MOST // (rows * columns))
                for start in range(0, len(some), size):
                    self._update(some[start : start + size], group)
        return loss

    def _update(self, parameters: Sequence[nn.Parameter], group: Mapping[str, Any]) -> None:
        """Move matrices of one shape, or its transpose."""
        updates = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
        tall = [update.shape[0] > update.shape[1] for update in updates]
        directions = orthogonalised([u.T if is_tall else u for u, is_tall in zip(updates, tall, strict=True)])
        step = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, direction, is_tall in zip(parameters, directions, tall, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.T if is_tall else direction, alpha=-step)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        grad = parameter.grad
        assert grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)


def orthogonalised(matrices: Sequence[Tensor]) -> Tensor:
    """Each matrix with its singular values moved to about 1: n of [r, c], r <= c, alike in all -> [n, r, c].

    Newton-Schulz iterations of Jordan's quintic polynomial (2024), which leaves singular values between .7 and 1.2. On
    a GPU in bf16, as its author does; on a CPU in the matrices' own precision.
    """
    x = torch.stack(list(matrices))
    if x.is_cuda:
        x = x.bfloat16()
    x /= torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPS)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices[0].dtype)
