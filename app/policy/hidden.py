"""The last hidden states of a language model at the places where they are read, and at no others.

In the last layer a token's query, output and feed-forward network serve that token alone; the others need its key and
its value. Where only answers are read, or only an answer's last token, the rest of the last layer need not be computed:
for the starter's three layers a sixth of a pass that reads answers, a quarter of one that reads last tokens. Values and
gradients stay the same but for the order of sums.
"""

import sys
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from app.policy.precision import compute_dtype

_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
_FITS: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def hidden_at(model: PreTrainedModel, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """What the model's body says after its last norm, at N places: ids [b, L], row and position [N] -> [N, H].

    Rows are right-padded, so no mask is needed: no real token stands behind padding. `model` may have a head or be a
    body. Differentiable; which way is taken depends on the model alone, so the same call twice takes the same one.
    """
    body: Any = model.base_model
    if not computes_alone(body):
        states: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
        return states[row, position]
    with _precision(body):
        return _computed(body, ids, row, position)


def computes_alone(body: PreTrainedModel) -> bool:
    """Whether the last layer can be computed here: it has Llama's parts, and the model's own forward pass agrees.

    Tried out once, not guessed from the name: on a few tokens, with the weights as they are.
    """
    if body not in _FITS:
        _FITS[body] = _has_parts(body) and _agrees(body)
    return _FITS[body]


def _computed(body: Any, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
    x = body.embed_tokens(ids)
    columns = torch.arange(ids.shape[1], device=ids.device)[None]
    cos, sin = rotation = body.rotary_emb(x, position_ids=columns)
    *layers, last = body.layers
    for layer in layers:
        x = layer(x, attention_mask=None, position_embeddings=rotation, position_ids=columns, use_cache=False)

    attention, (b, width) = last.self_attn, ids.shape
    normed = last.input_layernorm(x)
    # Keys and values of every token: [b, heads, L, size].
    keys, values = (
        project(normed).view(b, width, -1, attention.head_dim).transpose(1, 2)
        for project in (attention.k_proj, attention.v_proj)
    )
    # Queries of those that are read, side by side from slot 0 in their row: [b, heads, most of a row, size].
    slot, most = _slots(row, b)
    query = attention.q_proj(normed[row, position]).view(len(row), -1, attention.head_dim)
    query, _ = apply_rotary_pos_emb(query, query[:, :1], cos[0, position], sin[0, position])
    _, keys = apply_rotary_pos_emb(keys[:, :1], keys, cos, sin)
    groups = query.shape[1] // keys.shape[1]
    if groups > 1 and keys.is_cuda:  # no fast kernel there takes both a mask and grouped heads
        keys, values = (t.repeat_interleave(groups, 1) for t in (keys, values))
    queries = query.new_zeros(b, most, *query.shape[1:]).index_put((row, slot), query)
    # A slot that holds nothing sees the first token, so that its softmax is over something.
    until = position.new_zeros(b, most).index_put((row, slot), position)
    seen = columns[None] <= until[..., None]
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys,
        values,
        attn_mask=seen[:, None],
        scale=attention.scaling,
        enable_gqa=keys.shape[1] != queries.shape[2],
    )
    read = attended.transpose(1, 2)[row, slot].flatten(1)
    x = x[row, position] + attention.o_proj(read)
    x = x + last.mlp(last.post_attention_layernorm(x))
    states: Tensor = body.norm(x)
    return states


def _precision(body: PreTrainedModel) -> AbstractContextManager[Any]:
    """The body's own, which its forward pass would have set."""
    lowered = compute_dtype(body) is torch.bfloat16
    return torch.autocast(body.device.type, torch.bfloat16) if lowered else nullcontext()


def _slots(row: Tensor, rows: int) -> tuple[Tensor, int]:
    """A number for each place that no other of its row has, from 0, [N]; and one more than the largest."""
    count = torch.bincount(row, minlength=rows)
    order = torch.argsort(row, stable=True)
    starts = count.cumsum(0) - count
    slot = torch.empty_like(row)
    slot[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
    return slot, max(1, int(count.max()))


def _has_parts(body: Any) -> bool:
    layers, config = getattr(body, "layers", None), body.config.to_dict()
    if not layers or not all(hasattr(body, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return False
    last, attention = layers[-1], getattr(layers[-1], "self_attn", None)
    return (
        all(hasattr(last, name) for name in ("input_layernorm", "post_attention_layernorm", "mlp"))
        and all(hasattr(attention, name) for name in (*_PARTS, "head_dim", "scaling"))
        # Dropout shows in training only.
        and not any("drop" in name and isinstance(value, float) and value > 0 for name, value in config.items())
        # Layers that look only so far back would agree on a few tokens, and then no more.
        and not config.get("sliding_window")
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and _rotates_as_llama(attention)
    )


def _rotates_as_llama(attention: Any) -> bool:
    """Whether the model's own code turns queries and keys as Llama's does: a trial in bf16 might not tell."""
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return False
    draw = torch.Generator().manual_seed(0)
    x, cos, sin = (torch.randn(1, n, 3, 8, generator=draw) for n in (2, 1, 1))
    try:
        theirs = rotate(x, x, cos[0], sin[0])[0]
    except Exception:  # it wants something else
        return False
    return torch.equal(theirs, apply_rotary_pos_emb(x, x, cos[0], sin[0])[0])


@torch.no_grad()
def _agrees(body: Any) -> bool:
    device, count = body.embed_tokens.weight.device, body.embed_tokens.num_embeddings
    ids = torch.arange(16, device=device).reshape(2, 8) * 7919 % count
    row, position = torch.tensor([0, 0, 1, 1], device=device), torch.tensor([3, 6, 0, 7], device=device)
    training = body.training
    body.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            expected = body(input_ids=ids, use_cache=False).last_hidden_state[row, position].float()
            with _precision(body):
                found = _computed(body, ids, row, position).float()
    except Exception:  # what cannot be tried out is left to the model's own forward pass
        return False
    finally:
        body.train(training)
    close = 0.05 if compute_dtype(body) is torch.bfloat16 else 1e-4
    return bool((found - expected).norm() <= close * expected.norm()) and bool(expected.any())
