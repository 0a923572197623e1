"""Two ways to run a causal language model token by token behind one interface: Llama's own arithmetic, and any model.

A batch is left-padded, so that all rows write the same column of the key-value cache. Rows can leave it at any time.
"""

import inspect
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from app.policy.lora import adapted, effective_weight
from app.policy.precision import compute_dtype, product


class Decoder(Protocol):
    """Holds the state of one batch between steps."""

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Read left-padded prompts, ids [B, P] of `lengths` [B]; logits [B, V] of what comes next."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row, [B]; logits [B, V] of what comes next."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64 [b] in ascending order."""


class LlamaDecoder:
    """Llama's forward pass with a static cache, projections fused and nothing else: about twice as fast on a CPU.

    Weights are read from the live model when the decoder is made, with the LoRA adapter that is heard.
    """

    _dtype: torch.dtype
    _embedding: Tensor
    _head: Any
    _norm: Tensor
    _layers: "list[_Fused]"

    def __init__(
        self,
        model: LlamaForCausalLM,
        capacity: int,
        dtype: torch.dtype | None = None,
        like: "LlamaDecoder | None" = None,
    ) -> None:
        """`capacity`: most positions a row will have, prompt, padding and answer together.

        Computes in `dtype`; None: on a GPU in the model's precision, on a CPU in that of its weights, which is faster.
        `like`: another decoder of this very model, whose weights are shared; for a model that does not change.
        """
        config = model.config
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads or self._heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._eps = config.rms_norm_eps
        self._capacity = capacity
        self._dtype: torch.dtype
        self._embedding: Tensor
        self._head: nn.Module
        self._norm: Tensor
        self._layers: list[_Fused]
        if like is not None:
            self._dtype, self._embedding, self._head = like._dtype, like._embedding, like._head
            self._norm, self._layers = like._norm, like._layers
        else:
            self._read(model, dtype)
        positions = torch.arange(capacity, device=self._embedding.device)[None]
        cos, sin = model.model.rotary_emb(self._embedding, positions)
        self._cos, self._sin = cos[0], sin[0]

    def _read(self, model: LlamaForCausalLM, dtype: torch.dtype | None) -> None:
        weight = model.model.embed_tokens.weight
        self._dtype = dtype or (compute_dtype(model) if weight.is_cuda else weight.dtype)
        self._embedding = weight.to(self._dtype)
        self._head = model.lm_head if self._dtype is weight.dtype else _fp32_linear(model.lm_head, self._dtype)
        self._norm = model.model.norm.weight.to(self._dtype)
        plain = self._dtype is weight.dtype and not adapted(model)
        self._layers = [_fuse(layer, None if plain else self._dtype) for layer in model.model.layers]

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this arithmetic is the model's: Llama, with a rotary embedding of position alone."""
        if type(model) is not LlamaForCausalLM or model.config.hidden_act != "silu":
            return False
        rope = (model.config.rope_parameters or {}).get("rope_type", "default")
        return rope in ("default", "linear", "llama3", "yarn")

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        batch, width = ids.shape
        weight = self._embedding
        shape = (len(self._layers), batch * self._kv_heads, self._capacity, self._size)
        # A column is written before it is read, the padding's too: no memory needs clearing.
        self._keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.empty_like(self._keys)
        self._padding = width - lengths
        self._column = width
        columns = torch.arange(self._capacity, device=ids.device)
        hidden = columns[None] < self._padding[:, None]
        mask = torch.zeros(hidden.shape, dtype=weight.dtype, device=ids.device).masked_fill_(hidden, -torch.inf)
        self._mask = mask.repeat_interleave(self._kv_heads, 0)[:, None]

        x = F.embedding(ids, weight)
        positions = (columns[None, :width] - self._padding[:, None]).clamp_min(0)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        seen = columns[:width, None] >= columns[None, :width]
        # A padded position sees itself, so that its softmax is over something.
        visible = seen & (~hidden[:, None, :width] | torch.eye(width, dtype=torch.bool, device=ids.device))
        for i, layer in enumerate(self._layers):
            q, k, v = self._project(x, layer)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            self._keys[i, :, :width] = k.flatten(0, 1)
            self._values[i, :, :width] = v.flatten(0, 1)
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=visible[:, None], enable_gqa=self._kv_heads != self._heads
            )
            x = self._finish(x, attended.transpose(1, 2).flatten(2), layer)
        return self._logits(x[:, -1])

    def step(self, tokens: Tensor) -> Tensor:
        batch, column = len(tokens), self._column
        if column >= self._capacity:
            raise ValueError("the cache is full")
        x = F.embedding(tokens, self._embedding)
        positions = column - self._padding
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        mask = self._mask[:, :, : column + 1]
        group = self._heads // self._kv_heads
        for i, layer in enumerate(self._layers):
            q, k, v = self._project(x, layer)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            self._keys[i, :, column] = k.flatten(0, 1)
            self._values[i, :, column] = v.flatten(0, 1)
            keys, values = self._keys[i, :, : column + 1], self._values[i, :, : column + 1]
            q = q.reshape(batch * self._kv_heads, group, self._size)
            scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=self._size**-0.5)
            attended = torch.bmm(torch.softmax(scores, -1), values)
            x = self._finish(x, attended.view(batch, -1), layer)
        self._column += 1
        return self._logits(x)

    def keep(self, rows: Tensor) -> None:
        spread = (rows[:, None] * self._kv_heads + torch.arange(self._kv_heads, device=rows.device)).flatten()
        # Only the columns in use are copied.
        old = self._keys, self._values
        self._keys, self._values = (
            torch.empty((t.shape[0], len(spread), *t.shape[2:]), dtype=t.dtype, device=t.device) for t in old
        )
        for new, was in zip((self._keys, self._values), old, strict=True):
            new[:, :, : self._column] = was[:, :, : self._column].index_select(1, spread)
        self._padding = self._padding[rows]
        self._mask = self._mask[spread]

    def _project(self, x: Tensor, layer: "_Fused") -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [..., heads, size] each."""
        normed = F.rms_norm(x, x.shape[-1:], layer["input_norm"], self._eps)
        qkv = F.linear(normed, layer["qkv"], layer["qkv_bias"]).unflatten(-1, (-1, self._size))
        q, k, v = qkv.split([self._heads, self._kv_heads, self._kv_heads], -2)
        return q, k, v

    def _finish(self, x: Tensor, attended: Tensor, layer: "_Fused") -> Tensor:
        x = x + layer["o"](attended)
        normed = F.rms_norm(x, x.shape[-1:], layer["mlp_norm"], self._eps)
        gate, up = F.linear(normed, layer["gate_up"], layer["gate_up_bias"]).chunk(2, -1)
        return x + layer["down"](F.silu(gate) * up)

    def _logits(self, x: Tensor) -> Tensor:
        return self._head(F.rms_norm(x, x.shape[-1:], self._norm, self._eps)).float()


_Fused = dict[str, Any]


def _fuse(layer: Any, dtype: torch.dtype | None) -> _Fused:
    """A layer's weights side by side; in another `dtype`, or with adapters merged in, they are copies throughout."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up = (mlp.gate_proj, mlp.up_proj)
    fused = {
        "input_norm": layer.input_layernorm.weight,
        "mlp_norm": layer.post_attention_layernorm.weight,
        "qkv": torch.cat([effective_weight(m) for m in qkv]),
        "qkv_bias": torch.cat([m.bias for m in qkv]) if qkv[0].bias is not None else None,
        "gate_up": torch.cat([effective_weight(m) for m in gate_up]),
        "gate_up_bias": torch.cat([m.bias for m in gate_up]) if gate_up[0].bias is not None else None,
    }
    if dtype is None:
        return fused | {"o": attention.o_proj, "down": mlp.down_proj}
    fused = {name: None if tensor is None else tensor.to(dtype) for name, tensor in fused.items()}
    return fused | {"o": _linear(attention.o_proj, dtype), "down": _linear(mlp.down_proj, dtype)}


def _linear(module: Any, dtype: torch.dtype) -> partial[Tensor]:
    bias = None if module.bias is None else module.bias.to(dtype)
    return partial(F.linear, weight=effective_weight(module).to(dtype), bias=bias)


def _fp32_linear(head: nn.Linear, dtype: torch.dtype) -> Any:
    """The output head on hidden states of `dtype`, its sums in fp32: logits that are not rounded."""
    matrix = head.weight.to(dtype).T

    def logits(x: Tensor) -> Tensor:
        out = product(x, matrix)
        return out if head.bias is None else out + head.bias

    return logits


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in Llama's layout: the halves of each head turn together."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class GenericDecoder:
    """Any causal language model of transformers, through its own `past_key_values`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._context = getattr(model.config, "max_position_embeddings", None)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        width = ids.shape[1]
        self._attention = (torch.arange(width, device=ids.device)[None] >= (width - lengths)[:, None]).long()
        self._past: Any = DynamicCache(config=self._model.config)
        return self._forward(ids, self._attention.cumsum(-1) - 1)

    def step(self, tokens: Tensor) -> Tensor:
        self._attention = F.pad(self._attention, (0, 1), value=1)
        return self._forward(tokens[:, None], self._attention.sum(-1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        self._past.batch_select_indices(rows)
        self._attention = self._attention[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        # A row that waits to leave may have outgrown the context; what it gets is not used.
        positions = positions.clamp(0, None if self._context is None else self._context - 1)
        more = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(
            input_ids=ids, attention_mask=self._attention, past_key_values=self._past, use_cache=True, **more
        )
        self._past = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits.float()
