"""Log-probabilities of tokens, and the entropy around them, without ever holding all logits.

N tokens of a vocabulary of V make N x V logits, and a backward pass holds them two or three times: at V = 128,256 a
megabyte and more a token. Where they are many and the model's output head is a plain linear layer, they are made from
the hidden states in chunks, reduced to what is wanted, and made again in the backward pass: memory O(chunk), for a
third more work in the head. Heads that do more than multiply (a soft cap, scaled logits) take the model's own logits.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.policy.hidden import hidden_at
from app.policy.precision import compute_dtype, product
from app.training import losses

CHUNK = 1 << 24
"""Logits held at once, 64 MiB in fp32. Fewer than these are not cut."""


class Reading(NamedTuple):
    """What a language model thinks of N tokens: log-probability and entropy of each distribution, nats, [N] in fp32."""

    logprobs: Tensor
    entropy: Tensor | None


def read_tokens(
    model: PreTrainedModel,
    ids: Tensor,
    row: Tensor,
    position: Tensor,
    token: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
) -> Reading:
    """How likely tokens are under softmax(logits / temperature), by one forward pass.

    ids [b, L] are right-padded rows (no real token stands behind padding, so no mask is needed). Each of the N tokens
    (`token` [N]) is predicted by the output at (`row` [N], `position` [N]). Differentiable; the choice between the two
    ways depends on the model and on shapes, so the same call twice takes the same one.
    """
    head = plain_head(model)
    if head is None:
        logits = token_logits(model, ids, row, position)
    else:
        hidden = hidden_at(model, ids, row, position)
        if in_chunks(model, head, len(token)):
            lowered = compute_dtype(model) is torch.bfloat16
            return head_reading(hidden, head.weight, head.bias, token, temperature, entropy=entropy, lowered=lowered)
        logits = head(hidden)
    spread = losses.entropy(logits, temperature) if entropy else None
    return Reading(losses.token_logprobs(logits, token, temperature), spread)


def in_chunks(model: PreTrainedModel, head: nn.Linear, tokens: int) -> bool:
    """Whether so many tokens' logits are made in chunks by `head_reading`: where they are many, and always in bf16.

    There the model's own head would round its logits to three digits; `head_reading` keeps the sums' fp32.
    """
    return compute_dtype(model) is torch.bfloat16 or tokens * len(head.weight) > CHUNK


def token_logits(model: PreTrainedModel, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """The model's own logits at (row, position), [N, V]; the head reads no earlier column than it must."""
    width = ids.shape[1]
    more = {"logits_to_keep": width - int(position.min())} if _keeps_logits(type(model).forward) else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **more).logits
    return logits[row, position - (width - logits.shape[1])]


def head_reading(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    best: Tensor | None = None,
    lowered: bool = False,
    chunk: int | None = None,
) -> Reading:
    """`Reading` of logits = hidden weight^T + bias, [N, H] and [V, H], at most `chunk` (else CHUNK) at once.

    `best` [N], where given, is filled with the tokens that are the most likely ones.
    `lowered` multiplies bf16 factors into fp32 sums where the device can (a GPU); elsewhere in the factors' own type.
    """
    low = lowered and hidden.is_cuda
    logprobs, spread = _HeadReading.apply(hidden, weight, bias, token, temperature, entropy, low, chunk or CHUNK, best)
    return Reading(logprobs, spread if entropy else None)


class _HeadReading(torch.autograd.Function):
    """log p = z_token - logsumexp(z) and H = logsumexp(z) - sum p z, with z = logits / temperature.

    dlogp/dz = onehot - p, and dH/dz = -p (log p + H): the backward pass needs z again, and logsumexp and H of the
    forward pass, [N] each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token: Tensor,
        temperature: float,
        entropy: bool,
        low: bool,
        chunk: int,
        best: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = temperature, entropy, low, chunk
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = _factor(weight, low)
            parts = []
            for part in _chunks(len(token), len(weight), chunk):
                z = _scaled(product(_factor(hidden[part], low), matrix.T), bias, temperature)
                total = torch.logsumexp(z, -1)
                if best is not None:
                    best[part] = z.argmax(-1)
                chosen = z.gather(-1, token[part].unsqueeze(-1)).squeeze(-1) - total
                spread = total - (torch.softmax(z, -1) * z).sum(-1) if entropy else torch.zeros_like(total)
                parts.append(torch.stack([chosen, spread, total]))
            logprobs, spread, total = torch.cat(parts, 1)
        ctx.save_for_backward(hidden, weight, bias, token, spread, total)
        if not entropy:
            ctx.mark_non_differentiable(spread)
        return logprobs, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token, spread, total = ctx.saved_tensors
        temperature, entropy, low, chunk = ctx.settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = _factor(weight, low)
            grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
            grad_weight = torch.zeros_like(weight) if wants_weight else None
            grad_bias = torch.zeros_like(bias) if wants_bias else None
            for part in _chunks(len(token), len(weight), chunk):
                read = _factor(hidden[part], low)
                z = _scaled(product(read, matrix.T), bias, temperature)
                logprobs = z.sub_(total[part].unsqueeze(-1))
                slope = -grad_logprobs[part].unsqueeze(-1)
                if entropy:
                    slope = slope - grad_entropy[part].unsqueeze(-1) * (logprobs + spread[part].unsqueeze(-1))
                grad = logprobs.exp_() * slope
                grad.scatter_add_(-1, token[part].unsqueeze(-1), grad_logprobs[part].unsqueeze(-1).to(grad.dtype))
                if temperature != 1.0:
                    grad /= temperature
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = _factor(grad, low)
                if grad_hidden is not None:
                    grad_hidden[part] = product(grad, matrix).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, grad.T, read)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None, None


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The model's output head, where the logits are nothing but this linear layer of the last hidden states; else None.

    Tried out, not guessed: a forward pass in which the head's output is replaced by known numbers must return just
    these, and what the head reads must be what the model's body gives.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    if model not in _PLAIN:
        _PLAIN[model] = _is_plain(model, head)
    return head if _PLAIN[model] else None


_PLAIN: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _is_plain(model: PreTrainedModel, head: nn.Linear) -> bool:
    given: list[Tensor] = []
    read: list[Tensor] = []
    replaced: list[Tensor] = []
    known = torch.linspace(-300.0, 300.0, 2 * head.out_features, device=head.weight.device)

    def keep_body(module: nn.Module, arguments: Any, output: Any) -> None:
        given.append(getattr(output, "last_hidden_state", output))

    def replace_head(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read.append(arguments[0])
        replaced.append(known.reshape(output.shape).to(output.dtype))
        return replaced[-1]

    # Not the first tokens: the padding's embedding is 0, and many a change of 0 is 0.
    ids = torch.tensor([[head.out_features // 2, head.out_features // 3]], device=known.device)
    hooks = [model.base_model.register_forward_hook(keep_body), head.register_forward_hook(replace_head)]
    try:
        with torch.random.fork_rng(devices=[]):
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception:  # a head that cannot be tried out is not known to be plain
        return False
    finally:
        for hook in hooks:
            hook.remove()
    if len(given) != 1 or len(read) != 1 or not torch.is_tensor(given[0]) or given[0].shape != read[0].shape:
        return False
    told = bool(given[0].any()) and torch.equal(given[0], read[0])
    return told and torch.equal(logits.float(), replaced[0].float())


@functools.cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def _chunks(count: int, vocabulary: int, most: int) -> Iterator[slice]:
    step = max(1, most // vocabulary)
    return (slice(start, start + step) for start in range(0, count, step))


def _factor(values: Tensor, low: bool) -> Tensor:
    return values.bfloat16() if low else values.to(torch.promote_types(values.dtype, torch.float32))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second tensor of its size where the types allow it."""
    if total.dtype is a.dtype:
        total.addmm_(a, b)
    else:
        total += product(a, b)


def _scaled(logits: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    if bias is not None:
        logits = logits + bias
    return logits if temperature == 1.0 else logits / temperature
