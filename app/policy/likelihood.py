"""How likely a policy finds whole answers, with a gradient where one is wanted."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.policy.checkpoint import embeddings_of
from app.policy.reward_model import pack

CPU_ROWS = 8
"""Rows in one forward pass on a CPU: more of them only bring padding and cache misses."""


def answer_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad_id: int,
    *,
    most: int = 32,
    temperature: float = 1.0,
) -> Tensor:
    """log pi(answer | prompt), summed over each answer's tokens, in nats: [n] in order, float32, on the CPU.

    Prompts and answers are token ids; logits are divided by the temperature. Rows of like length, at most `most` of
    them, share a forward pass, padded on the right, where no causal model looks.
    """
    if not prompts:
        return torch.zeros(0)
    if embeddings_of(model).device.type == "cpu":
        most = min(most, CPU_ROWS)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(answers[i]), i))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    sums = []
    for start in range(0, len(order), most):
        rows = order[start : start + most]
        sums.append(_one_pass(model, [prompts[i] for i in rows], [answers[i] for i in rows], pad_id, temperature))
    return torch.cat(sums).cpu()[back]


def _one_pass(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad_id: int,
    temperature: float,
) -> Tensor:
    ids, _, answer = pack(prompts, answers, pad_id)
    device = embeddings_of(model).device
    ids, answer = ids.to(device), answer.to(device)
    # The head reads no earlier column than it must, and only real tokens of answers go on: [N, V].
    first = min(map(len, prompts)) - 1
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first).logits[:, :-1]
    wanted = answer[:, first + 1 :]
    scaled = logits[wanted].float() / temperature
    # The chosen logit minus logsumexp: the log-probabilities of all other tokens are never stored.
    chosen = scaled.gather(-1, ids[:, first + 1 :][wanted].unsqueeze(-1))[:, 0] - torch.logsumexp(scaled, -1)
    return torch.zeros(len(prompts), device=device).index_add(0, wanted.nonzero()[:, 0], chosen)
