"""bf16 arithmetic as a property of a model: whoever calls it computes in it, and nothing else changes.

Weights stay in fp32. Autocast covers a forward pass from its first layer to its last; what is computed from the result
(a softmax, a loss, a reward's or a value's head) stands outside and is fp32.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_DTYPE = "_compute_dtype"


def lower(model: PreTrainedModel) -> None:
    """From now on the model, and its body where that is called alone, multiplies matrices in bf16."""
    if compute_dtype(model) is torch.bfloat16:
        return
    for part in {id(part): part for part in (model, model.base_model)}.values():
        setattr(part, "forward", MethodType(_lowered(type(part).forward), part))  # noqa: B010  # mypy knows no other way
        setattr(part, _DTYPE, torch.bfloat16)


def lower_frozen(model: PreTrainedModel) -> None:
    """`lower`, and store the frozen linear layers of the body in bf16.

    Half the memory, and the same results to the bit: autocast would round the same numbers in every pass.
    """
    lower(model)
    for module in model.base_model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            module.to(torch.bfloat16)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """In which matrices are multiplied inside the model."""
    dtype: torch.dtype = getattr(model, _DTYPE, model.dtype)
    return dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 or better: of bf16 factors the fp32 sums, unrounded. [n, k], [k, m] -> [n, m]."""
    if a.dtype is not torch.bfloat16:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _lowered(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def lowered(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16):
            return forward(self, *args, **kwargs)

    return lowered
