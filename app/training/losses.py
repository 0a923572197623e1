"""The pure functions of PPO: masks in, numbers out, no model and no state.

Shapes: B rows, T tokens of the completion axis, V vocabulary entries. A mask is 1 on real tokens and 0 on padding, and
what stands under a 0 never changes a result. Log-probabilities are natural logarithms: every KL and entropy is in nats.

Whatever is averaged is divided by `count`, the number of real tokens in the whole batch that makes one update: the
results of its micro-batches then add up to the same loss and the same gradient, however the batch is cut.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens. [B, T], [B, T] -> []. `where`, not a product: 0 x NaN in the padding would be NaN."""
    return torch.where(mask.bool(), values, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor, count: float | None = None) -> Tensor:
    """Mean over the real tokens, or their sum divided by `count`. [B, T], [B, T] -> []."""
    return masked_sum(values, mask) / (mask.sum() if count is None else count)


def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean 0 and variance 1 over the real tokens of the whole batch, 0 on padding. [B, T] -> [B, T].

    The variance is the unbiased one. A single real token becomes 0.
    """
    n = mask.sum()
    mean = masked_mean(values, mask)
    variance = masked_sum((values - mean) ** 2, mask) / (n - 1).clamp(min=1)
    return torch.where(mask.bool(), (values - mean) * torch.rsqrt(variance + eps), 0.0)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the given tokens. [..., V], [...] -> [...], in float32.

    The chosen logit minus logsumexp: the log-probabilities of the other V - 1 tokens are never stored.
    """
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(scaled, -1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature): logsumexp(z) - sum softmax(z) z. [..., V] -> [...], nats."""
    scaled = _scaled(logits, temperature)
    return torch.logsumexp(scaled, -1) - (torch.softmax(scaled, -1) * scaled).sum(-1)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref at sampled tokens: unbiased for KL(pi || ref), may be negative. [B, T] -> [B, T].

    Summed over a sequence its expectation is the sequence KL, and as a part of the reward its gradient is right
    (Schulman 2020, "Approximating KL divergence", k1).
    """
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - 1 - d with d = log ref - log pi: unbiased too, never negative, less noisy (Schulman 2020, k3)."""
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta x KL on each token, plus the score on the last real one (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022).

    score [B], kl [B, T], mask [B, T] -> [B, T]. beta is in reward units per nat.
    """
    rewards = torch.where(mask.bool(), -beta * kl, 0.0)
    last = mask.long().sum(1) - 1
    return rewards.scatter_add(1, last.unsqueeze(1), score.unsqueeze(1).to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that they imply (Schulman et al. 2016, eq. 11 and 16).

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; the value after the last real token is 0.
    rewards, values, mask [B, T], real tokens first -> advantages and returns [B, T], both 0 on padding.
    """
    real = mask.bool()
    rewards, values = torch.where(real, rewards, 0.0), torch.where(real, values, 0.0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * running
        following = values[:, t]
        advantages[:, t] = running
    return advantages, advantages + values


class PolicyLoss(NamedTuple):
    """The clipped objective of one micro-batch and what is watched beside it; each adds up over micro-batches."""

    loss: Tensor
    clip_share: Tensor  # share of tokens whose gradient the clip took away
    approx_kl: Tensor  # how far this update has come: E[(log ratio)^2] / 2 (Schulman's k2), nats per token
    ratio: Tensor  # mean ratio
    ratio_error: Tensor  # largest |ratio - 1|; the one that is a maximum


def ppo_policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, clamp: float, count: float
) -> PolicyLoss:
    """-E min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) with ratio = pi / pi_old (Schulman et al. 2017, eq. 7).

    All tensors [B, T]; `clamp` bounds |log ratio| before it is exponentiated; `count` as in the module's head.
    """
    real = mask.bool()
    log_ratio = torch.where(real, logprobs - old, 0.0).clamp(-clamp, clamp)
    ratio = torch.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        clip_share = masked_mean((clipped > plain).float(), mask, count)
        approx_kl = masked_mean(0.5 * log_ratio**2, mask, count)
        mean_ratio = masked_mean(ratio, mask, count)
        error = torch.where(real, (ratio - 1).abs(), 0.0).amax()
    return PolicyLoss(masked_mean(torch.maximum(plain, clipped), mask, count), clip_share, approx_kl, mean_ratio, error)


class ValueLoss(NamedTuple):
    """The clipped regression of one micro-batch; both add up over micro-batches."""

    loss: Tensor
    clip_share: Tensor


def ppo_value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float, count: float
) -> ValueLoss:
    """1/2 E max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), as in PPO's own code (Schulman et al. 2017).

    All tensors [B, T]; `clip` is in reward units.
    """
    real = mask.bool()
    values, old, returns = (torch.where(real, x, 0.0) for x in (values, old, returns))
    near = torch.maximum(torch.minimum(values, old + clip), old - clip)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    with torch.no_grad():
        clip_share = masked_mean((clipped > plain).float(), mask, count)
    return ValueLoss(0.5 * masked_mean(torch.maximum(plain, clipped), mask, count), clip_share)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the real tokens: 1 is a perfect critic, 0 one that knows only the mean."""
    real = mask.bool()
    target = returns[real]
    if target.numel() < 2:
        return 0.0
    spread = target.var()
    return float(1 - (target - values[real]).var() / spread) if spread > 0 else 0.0


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature
