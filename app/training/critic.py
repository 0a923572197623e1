"""The two readings of a reward model in PPO: the frozen judge of whole answers, and the value function it starts."""

import copy

import torch
from torch import Tensor, nn

from app.policy.reward_model import RewardModel
from app.training.rollout import MicroBatch


class Judge:
    """A frozen reward model, in the unit of the reward: (raw - offset) x scale, clipped to +-clip."""

    def __init__(self, model: RewardModel, clip: float) -> None:
        self._model = model.eval().requires_grad_(False)
        self._clip = clip

    def __call__(self, micro: MicroBatch) -> Tensor:
        """Scores of the rows, [b]."""
        raw = self._model(micro.ids, micro.attention, micro.answer)
        return ((raw - self._model.offset) * self._model.scale).clamp(-self._clip, self._clip)


class ValueFunction(nn.Module):
    """Expected reward to come before each answer token: a copy of the reward model, read at every position."""

    def __init__(self, start: RewardModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(start).eval().requires_grad_(True)

    def forward(self, micro: MicroBatch) -> Tensor:
        """Values at the answer's tokens, [N]: each is read where the token is predicted, before it is known."""
        raw = self.model.token_values(micro.ids, micro.attention)
        values: Tensor = (raw[micro.local, micro.position].float() - self.model.offset) * self.model.scale
        return values


def score_with_penalty(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores less the penalty where the answer was cut before its end of sequence. [B], [B] -> [B]."""
    return torch.where(ended, scores, scores - penalty)
