"""The mix of demonstrations into PPO's policy update: "PPO-ptx" of Ouyang et al. (2022, eq. 2), on ideal answers.

Maximising reward costs a policy some of what it could do; a share of the gradient of its old objective holds that in
place. Here the old objective is that of supervised fine-tuning, the mean log-likelihood of an answer's tokens.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.core.errors import Invalid
from app.core.records import DemonstrationRecord
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompts
from app.training.failures import RunFailure
from app.training.order import Shuffler, derived_seed
from app.training.processes import ALONE, World
from app.training.rollout import Batch, Episode, read_answers

logger = logging.getLogger("pairwright.training")


class Demonstrations:
    """The train demonstrations that fit the policy's context, visited in an order that the seed decides."""

    def __init__(
        self, records: Sequence[DemonstrationRecord], tokenizer: PreTrainedTokenizerBase, context: int | None, seed: int
    ) -> None:
        train = [r for r in records if r.split is Split.TRAIN and r.completion.strip()]
        self._rows: list[Episode] = []
        for record, prompt in zip(train, encode_prompts(tokenizer, [r.prompt for r in train]), strict=True):
            if isinstance(prompt, Invalid):
                continue
            answer = encode_completion(tokenizer, record.completion)
            if context is None or len(prompt) + len(answer) <= context:
                self._rows.append(Episode(prompt, answer, True, [0.0] * len(answer)))
        if not self._rows:
            mend = "Set ptx_weight to 0, or import demonstrations that the policy's context has room for."
            raise RunFailure("data", "ptx_weight needs demonstrations, and there is none to learn from.", mend)
        if len(self._rows) < len(train):
            logger.warning(
                "%d of %d demonstrations are too long, and left out", len(train) - len(self._rows), len(train)
            )
        self._order = Shuffler(len(self._rows), derived_seed(seed, "ptx"))

    def take(self, count: int) -> list[Episode]:
        """The next ones, as episodes that were not sampled."""
        return [self._rows[i] for i in self._order.take(count)]

    def state_dict(self) -> dict[str, int]:
        """The place in the order."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._order.load_state_dict(state)


def ptx_gradient(
    policy: PreTrainedModel,
    demonstrations: Sequence[Episode],
    weight: float,
    micro_batch_size: int,
    pad_id: int,
    world: World = ALONE,
) -> dict[str, float]:
    """Add the gradient of weight x loss to the policy: the mean negative log-likelihood of answer tokens, in nats.

    Of several processes each adds its part of the gradient, and gets the whole loss.
    At temperature 1, as in supervised fine-tuning, whatever the rollouts' temperature is.
    """
    batch = Batch(
        demonstrations,
        pad_id=pad_id,
        minibatches=1,
        micro_batch_size=micro_batch_size,
        generator=torch.Generator().manual_seed(0),
        device=policy.device,
        world=world,
    )
    [minibatch] = batch.minibatches
    total = 0.0
    for micro in minibatch.micro:
        loss = -read_answers(policy, micro, 1.0).logprobs.sum() / minibatch.count
        (weight * loss).backward()
        total += float(loss.detach())
    return world.sum({"loss/ptx_avg": total})
