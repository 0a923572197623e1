"""The four networks of PPO on as few backbones as the run allows.

Full fine-tuning has four: the policy; the reference; the judge; and the value function, a copy of the judge. With LoRA
the reference is the policy's backbone with its adapters off, and the value function is an adapter and a head on the
judge's. The judge itself needs no backbone of its own where it was made from the same one: a probe that reads this very
policy, or a head trained with LoRA on it. Then one backbone is all four.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.core.configs import PPOConfig
from app.policy.checkpoint import load_policy
from app.policy.lora import (
    ADAPTER,
    SavedAdapter,
    add_adapter,
    factors,
    hear,
    load_factors,
    merged_with,
    read_adapter,
)
from app.policy.precision import lower_frozen
from app.policy.reward_model import HeadReward, ProbeReward, RewardModel, load_reward_model, load_reward_tokenizer
from app.training.critic import AdapterValue, Judge, ValueFunction
from app.training.failures import RunFailure
from app.training.memory import WEIGHT, require_memory_for, stored_parameters, trained
from app.training.models import (
    POLICY,
    freeze,
    new_adapter,
    place,
    prepare,
    prepare_passes,
    recompute_layers,
    require_finite_weights,
)
from app.training.run import Run

logger = logging.getLogger("pairwright.training")

REWARD, VALUE = "reward", "value"


@dataclass(frozen=True)
class Networks:
    """Policy, reference, judge and value function, ready.

    With LoRA `reference` may be the model of the policy: it is read under no adapter, and `policy` hears its own
    whenever no other is asked for. Every network is in evaluation mode for good: dropout would make a sampled token
    and its probability strangers.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel
    judge: Judge
    value: ValueFunction | AdapterValue


def open_networks(run: Run[PPOConfig]) -> Networks:
    """Load what the run's spec names. RunFailure or Invalid, with the mend, where they do not go together."""
    config = run.config
    folder = run.folder(run.spec.policy, "policy")
    reference_folder = run.folder(run.spec.reference or str(folder), "reference policy")
    reward_folder = run.folder(run.spec.reward_model, "reward model")
    _check_memory(run, folder, reference_folder, reward_folder)
    policy, tokenizer = load_policy(folder)
    policy.eval().requires_grad_(True)
    if config.lora_rank and reference_folder.samefile(folder):
        reference = policy
    else:
        reference = freeze(load_policy(reference_folder).model, config)
    if load_reward_tokenizer(reward_folder).get_vocab() != tokenizer.get_vocab():
        mend = "Train a reward model on this policy, or on one with the same tokenizer."
        raise RunFailure("config", "The reward model reads other tokens than the policy writes.", mend)
    reward = load_reward_model(reward_folder)
    require_finite_weights(reward, "reward model")
    judge, value = _adapters(run, policy, reward, reward_folder) if config.lora_rank else _full(run, policy, reward)
    if config.ensemble_penalty and judge.members == 1:
        mend = "Train a reward model with members above 1, or set ensemble_penalty to 0."
        raise RunFailure("config", "ensemble_penalty needs a reward model of several members; this one has one.", mend)
    # All of them start on the CPU, so that the same numbers stand in them wherever they go.
    for network in (policy, reference, reward, *value.modules()):
        place(network, run.device)
    return Networks(policy, tokenizer, reference, judge, value)


def _full(run: Run[PPOConfig], policy: PreTrainedModel, reward: RewardModel) -> tuple[Judge, ValueFunction]:
    """The policy made ready to learn as a whole; the judge, and a copy of it that learns to value."""
    config = run.config
    prepare(policy, config, run.spec.seed)
    value = ValueFunction(reward)
    prepare_passes(body_of(value), config)
    reward.eval().requires_grad_(False)
    if config.precision == "bf16":
        lower_frozen(body_of(reward))
    return Judge(reward, config.score_clip, config.ensemble_penalty), value


def _adapters(
    run: Run[PPOConfig], policy: PreTrainedModel, reward: RewardModel, reward_folder: Path
) -> tuple[Judge, AdapterValue]:
    """The policy's adapter, and judge and value function on its backbone, or else on the reward model's own."""
    config, seed = run.config, run.spec.seed
    reward.eval().requires_grad_(False)
    backbone, saved = _move_in(policy, reward, reward_folder)
    prepare(policy, config, seed)
    if saved is None:
        new_adapter(backbone, config, seed, VALUE)
    else:
        # The value function begins as the reward model, so its adapter is of the same kind.
        for name in (REWARD, VALUE):
            add_adapter(backbone, name, rank=saved.rank, alpha=saved.alpha, targets=saved.targets, seed=seed)
            load_factors(backbone, name, saved.factors)
        for factor in factors(backbone, REWARD).values():
            factor.requires_grad_(False)
    if backbone is not policy:
        if config.precision == "bf16":
            lower_frozen(backbone)
        if config.gradient_checkpointing:
            recompute_layers(backbone)
    hear(policy, POLICY)
    judge = Judge(reward, config.score_clip, config.ensemble_penalty, backbone, REWARD if saved else None)
    return judge, AdapterValue(backbone, VALUE, reward)


def _move_in(
    policy: PreTrainedModel, reward: RewardModel, reward_folder: Path
) -> tuple[PreTrainedModel, SavedAdapter | None]:
    """Let the reward model read the policy's backbone where its own holds the same weights, and forget its own.

    The backbone that it reads, and the adapter that makes the policy's backbone the reward model's, if there is one.
    Called while the policy is still without adapters.
    """
    if isinstance(reward, ProbeReward) and same_weights(policy.state_dict(), reward.language_model.state_dict()):
        reward.language_model = policy
        return policy, None
    folder = reward_folder / ADAPTER
    if isinstance(reward, HeadReward) and folder.is_dir():
        saved, body = read_adapter(folder), reward.body
        prefix = f"{body.base_model_prefix}."
        ours, theirs = merged_with(policy, saved), body.state_dict()
        if same_weights(*({k: v for k, v in state.items() if k.startswith(prefix)} for state in (ours, theirs))):
            setattr(body, body.base_model_prefix, policy.base_model)
            return policy, saved
    logger.info("the reward model was not made from this policy: it keeps a backbone of its own")
    return body_of(reward), None


def same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are those of one model, but for rounding."""
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
        for name in one
    )


def body_of(model: nn.Module) -> PreTrainedModel:
    """The transformer inside a reward model or a value function."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def _check_memory(run: Run[PPOConfig], folder: Path, reference: Path, reward: Path) -> None:
    config = run.config
    policy, judge = stored_parameters(folder), stored_parameters(reward)
    needs = {"reward model": judge * WEIGHT}
    if config.lora_rank:
        needs["policy"] = policy * WEIGHT
        if not reference.samefile(folder):
            needs["reference"] = stored_parameters(reference) * WEIGHT
    else:
        moments = 1 if config.optimizer == "muon" else 2
        needs["reference"] = stored_parameters(reference) * WEIGHT
        needs["policy with gradient and optimizer"] = trained(
            policy, moments=moments, copies=int(config.kl_budget is not None)
        )
        needs["value function with gradient and optimizer"] = trained(judge, moments=moments)
    mend = "Set lora_rank, which trains small adapters on shared weights, or take a machine with more memory."
    require_memory_for(run, needs, mend)
