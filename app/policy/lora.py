"""Low-rank adapters inside a transformer's own linear layers (LoRA; Hu et al. 2021), by peft.

A layer W becomes W + (alpha / rank) B A: W stays as it was loaded, A and B learn, and B starts at 0, so that a new
adapter changes nothing. A model carries several adapters by name, of which one or none is heard at a time; with none it
is the model that was loaded. One backbone so serves a policy, its reference, a value function and a reward model:

    add_adapter(model, "policy", rank=16, seed=0)      # heard from now on
    model(ids)                                         # the policy
    with using(model, None):
        model(ids)                                     # the reference
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.core.errors import Invalid

ADAPTER = "adapter"
"""The folder inside a model's folder that holds its adapter apart."""
ALL_LINEAR = "all-linear"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LAYERS = "_lora_layers"
_PREFIX = "base_model.model."  # before every name in peft's files


class SavedAdapter(NamedTuple):
    """An adapter read from a folder: its factors by name as in `factors`, and a reward model's score, [1, hidden]."""

    rank: int
    alpha: float
    targets: list[str]
    factors: dict[str, Tensor]
    score: Tensor | None


def add_adapter(
    model: PreTrainedModel,
    name: str,
    *,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = ALL_LINEAR,
    seed: int,
) -> None:
    """Put a new adapter into the model and hear it; everything else of the model is frozen, other adapters left alone.

    `alpha` is twice the rank where it is None. Targets are names of layers, or the ends of their names; `all-linear` is
    every linear layer but the output head. Invalid where the model has none of them.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model  # takes a second to import

    learning = {id(p) for p in model.parameters() if p.requires_grad} if adapted(model) else set()
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]  # peft divides it: any number will do
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM if model.get_output_embeddings() is not None else TaskType.SEQ_CLS,
        # GPT-2's layers are stored the other way round.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # that there is an adapter already
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, name)
    except ValueError as error:
        linear = (path for path, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D"))
        kinds = sorted({path.rpartition(".")[2] for path in linear})
        raise Invalid(
            f"LoRA finds nothing to adapt: {targets} names no linear layer of {type(model).__name__}.",
            f"Its linear layers are {', '.join(kinds)}; or set lora_targets to {ALL_LINEAR}.",
        ) from error
    setattr(model, _LAYERS, {path: m for path, m in model.named_modules() if hasattr(m, "lora_A")})
    # peft trains only what is heard; here adapters learn in turns.
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    for parameter in factors(model, name).values():
        parameter.requires_grad_(True)
    hear(model, name)


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that carry adapters, by path; empty for a model without any."""
    layers: dict[str, Any] = getattr(model, _LAYERS, {})
    return layers


def heard(model: nn.Module) -> str | None:
    """The name of the adapter that is heard."""
    layer = next(iter(adapted(model).values()), None)
    return None if layer is None else _heard(layer)


def hear(model: nn.Module, name: str | None) -> None:
    """Hear one adapter, or none, from now on."""
    for layer in adapted(model).values():
        _set(layer, name)


@contextmanager
def using(model: nn.Module, name: str | None) -> Iterator[None]:
    """Hear one adapter, or none, inside the context. A model without adapters is left alone."""
    before = heard(model)
    hear(model, name)
    try:
        yield
    finally:
        hear(model, before)


def as_now(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which the adapters inside a part of a model are heard as they are at this moment."""
    layers = [(layer, _heard(layer)) for layer in module.modules() if _is_adapted(layer)]
    return _again(layers) if layers else nullcontext()


def factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's A [rank, in] and B [out, rank], named as `model.layers.0.self_attn.q_proj.lora_A.weight`."""
    return {
        f"{path}.{part}.weight": getattr(layer, part)[name].weight
        for path, layer in adapted(model).items()
        for part in ("lora_A", "lora_B")
        if name in layer.lora_A
    }


def load_factors(model: nn.Module, name: str, values: Mapping[str, Tensor]) -> None:
    """Give an adapter other values."""
    own = factors(model, name)
    if own.keys() != values.keys():
        raise Invalid("The saved adapter is of another model or rank.", "Start the run again from its own directory.")
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(values[key])


def effective_weight(layer: Any) -> Tensor:
    """A linear layer's weight with the adapter that is heard, in the layer's own layout; a plain layer's own weight."""
    weight: Tensor = layer.weight
    if not _is_adapted(layer) or layer.disable_adapters:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name)
    return weight


@torch.no_grad()
def merged(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the plain model that computes what this one does with the adapter that is heard.

    The model's own state where it carries none.
    """
    layers = adapted(model)
    state = {}
    for key, value in model.state_dict().items():
        path, _, rest = key.partition(".base_layer.")
        if path in layers:
            state[f"{path}.{rest}"] = effective_weight(layers[path]) if rest == "weight" else value
        elif key.partition(".lora_")[0] not in layers:
            state[key] = value
    return state


@torch.no_grad()
def merged_with(model: PreTrainedModel, saved: SavedAdapter) -> dict[str, Tensor]:
    """The state that a plain model would have with a saved adapter merged; its own where the two do not go together."""
    state = dict(model.state_dict())
    for path in {key.partition(".lora_")[0] for key in saved.factors}:
        weight = state.get(f"{path}.weight")
        a, b = (saved.factors[f"{path}.lora_{part}.weight"] for part in "AB")
        delta = (b @ a) * (saved.alpha / saved.rank)
        if weight is not None and type(model.get_submodule(path)).__name__ == "Conv1D":
            delta = delta.T
        if weight is None or weight.shape != delta.shape:
            return model.state_dict()
        state[f"{path}.weight"] = weight + delta.to(weight.device)
    return state


def save_model(folder: Path, model: PreTrainedModel) -> None:
    """Write a model's files into an existing folder; an adapter is merged, and stands apart in `adapter/` as well."""
    model.save_pretrained(folder, state_dict=merged(model))
    name = heard(model)
    if name is not None:
        save_adapter(folder / ADAPTER, model, name)


def save_adapter(folder: Path, model: PreTrainedModel, name: str) -> None:
    """Write an adapter as peft does: `PeftModel.from_pretrained(base, folder)` takes it.

    A sequence classifier's score goes with it (the mean of several), for it was trained with the adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = model.peft_config[name]
    config = settings.to_dict()
    config["inference_mode"] = True
    # Where the base lies is this machine's own affair.
    config["base_model_name_or_path"] = Path(str(model.config.name_or_path)).name
    tensors: dict[str, Tensor] = {f"{_PREFIX}{key}": value for key, value in factors(model, name).items()}
    score = getattr(model, "score", None)
    if isinstance(score, nn.Linear):
        tensors[f"{_PREFIX}score.weight"] = score.weight.mean(0, keepdim=True)
        config["modules_to_save"] = ["score"]
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / _CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    whole = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / _WEIGHTS, metadata={"format": "pt"})


def read_adapter(folder: Path) -> SavedAdapter:
    """What `save_adapter` wrote. Invalid where the folder holds no adapter of this plain kind."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = {key.removeprefix(_PREFIX): value for key, value in load_file(folder / _WEIGHTS).items()}
        rank, alpha, targets = int(config["r"]), float(config["lora_alpha"]), list(config["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"The adapter in {folder.parent.name} cannot be read: {error}", "Train it anew.") from error
    score = tensors.pop("score.weight", None)
    return SavedAdapter(rank, alpha, targets, tensors, score)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A")


def _heard(layer: Any) -> str | None:
    return None if layer.disable_adapters else str(layer.active_adapters[0])


def _set(layer: Any, name: str | None) -> None:
    # peft's own `set_adapter` also takes the gradients from every other adapter, in the middle of a backward pass.
    layer._disable_adapters = name is None
    if name is not None:
        layer._active_adapter = [name]


@contextmanager
def _again(layers: Sequence[tuple[Any, str | None]]) -> Iterator[None]:
    now = [(layer, _heard(layer)) for layer, _ in layers]
    for layer, name in layers:
        _set(layer, name)
    try:
        yield
    finally:
        for layer, name in now:
            _set(layer, name)
