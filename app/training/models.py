"""What every training loop does with a model that it has loaded: precision, recomputation, LoRA, and its state.

    model, tokenizer = load_policy(folder)
    place(prepare(model, config, run.spec.seed), run.device)   # in place; then the model is called as ever
    reference = place(freeze(load_policy(folder).model, config), run.device)
    optimizer = MuonAdamW(learning(model), ...)      # with LoRA the adapter alone

    run.end_step(..., lambda: {"model": state_of(model), ...})
    load_state(model, state.tree["model"])
    run.finish(lambda folder: save_policy(folder, model, tokenizer), ...)     # LoRA: merged, and adapter/ beside it

`prepare` sets, as `TrainConfig` has it: `precision` (a forward pass from anywhere then multiplies in bf16; losses
outside of it stay fp32), `gradient_checkpointing`, and with `lora_rank` a new adapter named "policy", everything else
frozen. With LoRA a reference needs no second model: `with app.policy.lora.using(model, None)` the model is the one
loaded. Read log-probabilities by `app.training.logprobs.read_tokens`, which never holds a large vocabulary's logits.

A reward model's body (a sequence classifier) is prepared in the same way; its score keeps learning beside the adapter,
and is computed outside of the body, in fp32.
"""

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from app.core.configs import TrainConfig
from app.policy.lora import ALL_LINEAR, add_adapter, as_now, factors, heard
from app.policy.precision import lower, lower_frozen
from app.training.failures import RunFailure
from app.training.order import derived_seed

POLICY = "policy"
M = TypeVar("M", bound=nn.Module)


def prepare(model: PreTrainedModel, config: TrainConfig, seed: int, *, adapter: str = POLICY) -> PreTrainedModel:
    """Make a model trainable as the configuration has it; the same model. RunFailure `config` where it cannot be."""
    require_finite_weights(model, "model to start from")
    if config.lora_rank:
        new_adapter(model, config, seed, adapter)
        for parameter in _score(model).values():
            parameter.requires_grad_(True)
    prepare_passes(model, config)
    return model


def prepare_passes(model: PreTrainedModel, config: TrainConfig) -> None:
    """Precision and recomputation as the configuration has them, of a model whose parameters are as they should be."""
    if config.precision == "bf16":
        lower(model)
    if config.gradient_checkpointing:
        recompute_layers(model)


def freeze(model: PreTrainedModel, config: TrainConfig) -> PreTrainedModel:
    """Make a model one that is only read, in evaluation mode and in the configuration's precision; the same model."""
    require_finite_weights(model, "reference policy")
    model.eval().requires_grad_(False)
    if config.precision == "bf16":
        lower_frozen(model)
    return model


def place(model: M, device: torch.device) -> M:
    """Move a model to where a run computes; the same model, with the same parameters."""
    module: nn.Module = model  # transformers' own `to` is not typed
    module.to(device)
    return model


def new_adapter(model: PreTrainedModel, config: TrainConfig, seed: int, name: str) -> None:
    """Put an adapter of the configuration's rank into the model; its start is decided by seed and name alone."""
    targets = [target.strip() for target in config.lora_targets.split(",")]
    add_adapter(
        model,
        name,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        seed=derived_seed(seed, "lora", name),
    )


def learning(model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """What an optimizer gets: with LoRA the adapter that is heard (and a score), else every parameter."""
    name = heard(model)
    return list(model.named_parameters()) if name is None else [*factors(model, name).items(), *_score(model).items()]


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint must hold of a model that learns: with LoRA the adapter (and a score), else everything."""
    return model.state_dict() if heard(model) is None else dict(learning(model))


def load_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Go on from what `state_of` gave. RunFailure `checkpoint` for that of another model, or of another LoRA rank."""
    own = state_of(model)
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            mend = "Start the run anew, or put its settings back to what they were when it was stopped."
            message = f"The run's checkpoint is of another model: {name} is missing or of another shape."
            raise RunFailure("checkpoint", message, mend)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _score(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A sequence classifier's own head, by name."""
    score = getattr(model, "score", None)
    return {f"score.{name}": p for name, p in score.named_parameters()} if isinstance(score, nn.Linear) else {}


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only the input of each layer in a forward pass with gradients, and compute the rest again going back.

    transformers' own switch works in training mode only, and networks here are in evaluation mode, for dropout is off.
    The adapters heard in the forward pass are those heard again, whichever are by then. `app.policy.hidden` computes
    the last layer by itself, and keeps it: going back begins there, so no more is held at any time than of one layer.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        mend = "Set gradient_checkpointing to false and use a smaller micro_batch_size."
        raise RunFailure("config", f"{type(model).__name__} has no layers that can be recomputed.", mend)
    for layer in layers:
        setattr(layer, "forward", MethodType(_recomputed, layer))  # noqa: B010  # mypy knows no other way


def _recomputed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(self).forward, self, **kwargs)
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args)
    # The first context is the forward pass's own.
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (as_now(self), as_now(self)))


def require_finite_weights(model: nn.Module, what: str) -> None:
    """RunFailure `checkpoint` where a weight is NaN or infinite: no training could mend it."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            mend = "Take an earlier checkpoint, or train or import the model anew."
            raise RunFailure("checkpoint", f"The {what} has weights that are NaN or infinite ({name}).", mend)
