"""What a language model shows of an answer: features for a reward model that needs few judgments.

Two blocks, both pooled over the answer's tokens:

hidden      the hidden states of chosen layers: what is said, and in which context.
likelihood  per token, the log-probability l = log p(token | prompt, answer so far), the entropy H of the same
            distribution, the surprise -l - H, the distance to the most likely token, and the pointwise mutual
            information with the prompt, i = l - log mean_k p(token | prompt k, answer so far) over a few other
            prompts k, through a few bounded functions. A wrong name or number stands out as a token that the right
            prompt makes less likely, a sentence that would suit anybody as one with i near 0.

The other prompts belong to the checkpoint, so that the features of an answer depend on nothing else.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

LENGTH_UNIT = 32.0
"""Sums over an answer's tokens are divided by it, which keeps features of usual answers near 1."""
LIKELIHOOD = 11
_PLAIN_LIKELIHOOD = 5


class Reader:
    """Computes features. `layers` index a model's hidden states, 0 the embedding; `contrast` are the other prompts."""

    def __init__(
        self,
        layers: Sequence[int],
        contrast: Sequence[Sequence[int]],
        pooling: Literal["mean", "sum"],
        likelihood: bool,
        pad_id: int,
    ) -> None:
        self.layers = list(layers)
        self.contrast = [torch.tensor(list(prompt)) for prompt in contrast]
        self.pooling = pooling
        self.likelihood = likelihood
        self.pad_id = pad_id

    @property
    def likelihood_width(self) -> int:
        """How many features the likelihood gives; they are the last."""
        return (LIKELIHOOD if self.contrast else _PLAIN_LIKELIHOOD) if self.likelihood else 0

    def width(self, hidden: int) -> int:
        """The number of features, for a model with hidden states of that width."""
        return len(self.layers) * hidden + self.likelihood_width

    @torch.no_grad()
    def features(self, model: PreTrainedModel, ids: Tensor, answer: Tensor) -> Tensor:
        """Features of right-padded rows. ids, answer [b, L] -> [b, width], fp32. No row sees another or the padding."""
        # Causal attention over right-padded rows needs no mask: no real token stands behind padding.
        first = int(answer.int().argmax(-1).min()) - 1
        out = model(
            input_ids=ids,
            use_cache=False,
            output_hidden_states=bool(self.layers),
            logits_to_keep=ids.shape[1] - first if self.likelihood else 1,
        )
        mask = answer.float()
        parts = [self._pool(out.hidden_states[layer].float(), mask) for layer in self.layers]
        if self.likelihood:
            logits = out.logits[:, :-1].float()
            tokens, mask = ids[:, first + 1 :], mask[:, first + 1 :]
            logprobs = logits.log_softmax(-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1)
            chosen = logprobs.gather(-1, tokens.unsqueeze(-1))[..., 0]
            elsewhere = self._elsewhere(model, ids, answer, first) if self.contrast else None
            parts.append(self._pool(token_features(chosen, entropy, logprobs.amax(-1), elsewhere), mask))
        return torch.cat(parts, -1)

    def _pool(self, per_token: Tensor, mask: Tensor) -> Tensor:
        """[b, T, F], [b, T] -> [b, F]."""
        # Masked by value, not by product: whatever stands in the padding, even a NaN, is not read.
        total = torch.where(mask.unsqueeze(-1) > 0, per_token, 0.0).sum(1)
        return total / (LENGTH_UNIT if self.pooling == "sum" else mask.sum(1, keepdim=True).clamp_min(1))

    def _elsewhere(self, model: PreTrainedModel, ids: Tensor, answer: Tensor, first: int) -> Tensor:
        """log mean_k p(token | other prompt k, answer so far), in the columns after `first`. -> [b, L - first - 1]."""
        answers = pad_sequence([r[a] for r, a in zip(ids, answer, strict=True)], True, self.pad_id)
        log_sum: Tensor | None = None
        for prompt in self.contrast:
            rows = torch.cat([prompt.to(ids).expand(len(ids), -1), answers], 1)
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=answers.shape[1] + 1).logits[:, :-1]
            chosen = logits.float().log_softmax(-1).gather(-1, answers.unsqueeze(-1))[..., 0]
            log_sum = chosen if log_sum is None else torch.logaddexp(log_sum, chosen)
        assert log_sum is not None
        mean = log_sum - torch.log(torch.tensor(float(len(self.contrast))))
        lengths = answer.sum(-1)
        spread = torch.zeros(ids.shape, dtype=mean.dtype, device=ids.device)
        spread[answer] = mean[torch.arange(answers.shape[1], device=ids.device) < lengths.unsqueeze(1)]
        return spread[:, first + 1 :]


def token_features(chosen: Tensor, entropy: Tensor, best: Tensor, elsewhere: Tensor | None) -> Tensor:
    """Functions of a token's likelihood. Each input [..., T], in nats -> [..., T, 11], or 5 without `elsewhere`."""
    surprise = -chosen - entropy
    columns = [
        chosen,
        entropy,
        surprise.clamp(0, 4),
        surprise.clamp(-1, 2),
        (best - chosen).clamp(max=3),
    ]
    if elsewhere is not None:
        information = chosen - elsewhere
        columns += [
            information,
            information.clamp(min=0),
            information.clamp(-3, 0),
            information.clamp(-1, 1),
            information.clamp(0, 2),
            torch.tanh(information.clamp(max=0)),
        ]
    return torch.stack(columns, -1)
