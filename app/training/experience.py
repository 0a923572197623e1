"""A batch of episodes as policy, reference and judge see it, and the figures that describe it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.core.configs import PPOConfig
from app.policy.lora import using
from app.training import losses
from app.training.critic import Judge, score_with_penalty
from app.training.rollout import Batch, read_answers


@dataclass(frozen=True)
class Experience:
    """Tensors of tokens are [B, T], 0 on padding; scores [B] have the penalty for a missing end already off.

    `logprobs` are those of the policy that sampled, by a forward pass in training precision. `spread` [B] is how far
    the members of the reward model differ, None where it has one.
    """

    batch: Batch
    logprobs: Tensor
    entropy: Tensor
    reference: Tensor
    scores: Tensor
    spread: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """k1 of each token, [B, T]."""
        return losses.kl_k1(self.logprobs, self.reference)

    @property
    def sequence_kl(self) -> float:
        """Estimate of KL(policy || reference), nats per sequence."""
        return float(self.kl.sum(1).mean())

    def summary(self) -> dict[str, float]:
        """What the result of a run says of its policy. Entropy is per token."""
        batch = self.batch
        return {
            "reward": float(self.scores.mean()),
            "kl": self.sequence_kl,
            "entropy": float(losses.masked_mean(self.entropy, batch.mask)),
            "length": float(batch.lengths.float().mean()),
            "truncated_share": float((~batch.ended).float().mean()),
        }

    def metrics(self, beta: float) -> dict[str, float]:
        """What is logged each iteration, under TRL's names where TRL logs the same quantity."""
        summary = self.summary()
        gap = (self.batch.sampler_logprobs() - self.logprobs).abs()
        return {
            "objective/scores": summary["reward"],
            "objective/scores_std": float(self.scores.std()),
            **({} if self.spread is None else {"objective/scores_member_std": float(self.spread.mean())}),
            "objective/kl": summary["kl"],
            "objective/kl_k3": float(losses.kl_k3(self.logprobs, self.reference).sum(1).mean()),
            "objective/non_score_reward": -beta * summary["kl"],
            "objective/rlhf_reward": summary["reward"] - beta * summary["kl"],
            "objective/entropy": float(-self.logprobs.sum(1).mean()),
            "objective/beta": beta,
            "policy/entropy_avg": summary["entropy"],
            "completions/mean_length": summary["length"],
            "completions/truncated_share": summary["truncated_share"],
            "val/num_eos_tokens": float(self.batch.ended.sum()),
            "rollout/logprob_gap": float(losses.masked_mean(gap, self.batch.mask)),
        }


@torch.no_grad()
def read(
    batch: Batch, policy: PreTrainedModel, reference: PreTrainedModel, judge: Judge, config: PPOConfig
) -> Experience:
    """Read a batch with the three networks, each in the same micro-batches, logits divided by the temperature. Every
    process reads its share and gets the whole.

    The reference may be the policy's own model: it is read without adapters.
    """
    device = batch.mask.device
    logprobs, entropy, reference_logprobs = (torch.zeros(batch.mask.shape, device=device) for _ in range(3))
    scores, spread = (torch.zeros(len(batch.episodes), device=device) for _ in range(2))
    for micro in batch:
        seen = read_answers(policy, micro, config.temperature, entropy=True)
        assert seen.entropy is not None
        logprobs[micro.row, micro.time], entropy[micro.row, micro.time] = seen.logprobs, seen.entropy
        with using(reference, None):
            reference_logprobs[micro.row, micro.time] = read_answers(reference, micro, config.temperature).logprobs
        judgement = judge(micro)
        scores[micro.rows], spread[micro.rows] = judgement.scores.float(), judgement.spread.float()
    for seen_by_all in (logprobs, entropy, reference_logprobs, scores, spread):
        batch.world.total(seen_by_all)
    scores = score_with_penalty(scores, batch.ended, config.missing_eos_penalty)
    return Experience(batch, logprobs, entropy, reference_logprobs, scores, spread if judge.members > 1 else None)
