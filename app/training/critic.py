"""The two readings of a reward model in PPO: the frozen judge of whole answers, and the value function it starts."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.policy.hidden import hidden_at
from app.policy.lora import factors, load_factors, using
from app.policy.reward_model import ProbeReward, RewardModel
from app.training.rollout import MicroBatch


class Judgement(NamedTuple):
    """Scores of b rows and the standard deviation of their members, both in reward units, [b]."""

    scores: Tensor
    spread: Tensor


class Judge:
    """A frozen reward model, in the unit of the reward: (raw - offset) x scale, clipped to +-clip.

    Of an ensemble the raw score is mean - penalty x std of its members (after Coste et al. 2024, who take the variance;
    the std has the score's unit): an answer of which they are unsure, perhaps because nothing like it was ever
    compared, is worth less. With `backbone` the reward model's body is that model's, and is read under `adapter`.
    `members` says how many there are.
    """

    def __init__(
        self,
        model: RewardModel,
        clip: float,
        penalty: float = 0.0,
        backbone: PreTrainedModel | None = None,
        adapter: str | None = None,
    ) -> None:
        self._model, self._clip, self._penalty = model, clip, penalty
        self._backbone, self._adapter = backbone or model, adapter
        ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
        self.members = len(self._raw(ids, torch.ones_like(ids), torch.tensor([[False, True]], device=ids.device)))

    @torch.no_grad()
    def __call__(self, micro: MicroBatch) -> Judgement:
        """Scores of the rows."""
        raw = self._raw(micro.ids, micro.attention, micro.answer)
        mean, spread = raw.mean(0), raw.std(0, correction=0)
        if self._penalty:
            mean = mean - self._penalty * spread
        reward = ((mean - self._model.offset) * self._model.scale).clamp(-self._clip, self._clip)
        return Judgement(reward, spread * self._model.scale)

    @torch.no_grad()
    def _raw(self, ids: Tensor, attention: Tensor, answer: Tensor) -> Tensor:
        """Scores of each member, [M, b]; of a reward model that has no members its only scores, [1, b]."""
        with using(self._backbone, self._adapter):
            members = getattr(self._model, "members", None)
            if callable(members):
                scores: Tensor = members(ids, attention, answer)
                return scores
            return self._model(ids, attention, answer).unsqueeze(0)


class ValueFunction(nn.Module):
    """Expected reward to come before each answer token: a copy of the reward model, read at every position."""

    def __init__(self, start: RewardModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(start).eval().requires_grad_(True)

    def forward(self, micro: MicroBatch) -> Tensor:
        """Values at the answer's tokens, [N]: each is read where the token is predicted, before it is known."""
        raw = self.model.values_at(micro.ids, micro.local, micro.position)
        values: Tensor = (raw.float() - self.model.offset) * self.model.scale
        return values


class AdapterValue:
    """The same on a backbone that others use too: an adapter and a head of its own, which start as the reward model's.

    Parameters and state are those of adapter and head alone.
    """

    def __init__(self, backbone: PreTrainedModel, adapter: str, start: RewardModel) -> None:
        self._backbone, self._adapter = backbone, adapter
        self._offset, self._scale = start.offset, start.scale
        self._head = value_head(start)

    def __call__(self, micro: MicroBatch) -> Tensor:
        """Values at the answer's tokens, [N]: each is read where the token is predicted, before it is known."""
        with using(self._backbone, self._adapter):
            hidden = hidden_at(self._backbone, micro.ids, micro.local, micro.position)
        raw: Tensor = self._head(hidden.float())[..., 0]
        return (raw - self._offset) * self._scale

    def modules(self) -> list[nn.Module]:
        """What is this function's alone."""
        return [self._head]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What learns."""
        return [*self._head.named_parameters("head"), *factors(self._backbone, self._adapter).items()]

    def state_dict(self) -> dict[str, Any]:
        """Head and adapter."""
        return {"head": self._head.state_dict(), "adapter": dict(factors(self._backbone, self._adapter))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        load_factors(self._backbone, self._adapter, state["adapter"])
        self._head.load_state_dict(state["head"])


def value_head(model: RewardModel) -> nn.Linear:
    """A copy, in fp32, of the linear map by which a reward model expects a raw score from a prefix's hidden state."""
    score = getattr(model, "head", None)
    weight: Tensor
    bias: Tensor | None
    if isinstance(score, nn.Linear):
        weight, bias = score.weight.mean(0), None if score.bias is None else score.bias.mean()
    else:
        assert isinstance(model, ProbeReward)
        weight, bias = model.value, model.value_bias
    head = nn.Linear(len(weight), 1, bias=bias is not None, device=weight.device)
    with torch.no_grad():
        head.weight.copy_(weight.float())
        if bias is not None:
            head.bias.copy_(bias.float())
    return head


def score_with_penalty(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores less the penalty where the answer was cut before its end of sequence. [B], [B] -> [B]."""
    return torch.where(ended, scores, scores - penalty)
