"""Losses and figures of a reward model: pure functions of scores, no model in sight.

Bradley and Terry (1952): P(i beats j) = sigmoid(s_i - s_j). Rao and Kupper (1967) add ties by a threshold eta >= 0:
P(i beats j) = sigmoid(s_i - s_j - eta) and P(tie) = (exp(2 eta) - 1) P(i beats j) P(j beats i).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.core.pairing import Tiers, pairs_of


class Pairs(NamedTuple):
    """Pairs of completions by their rows in a table of scores; `tied` pairs have no better side. All of shape [P]."""

    first: Tensor
    second: Tensor
    tied: Tensor
    weight: Tensor
    judgment: Tensor
    """Which judgment a pair comes from."""


def pairs_of_judgments(tiers: Sequence[Tiers], rows: Sequence[Sequence[int]] | None = None) -> Pairs:
    """Every pair of every judgment, the better completion first, with weight 1 / C(K, 2): each judgment weighs one.

    `rows[j]` are the rows of judgment j's K completions; without it rows count through the judgments in order.
    Completions of one tier make tied pairs.
    """
    pairs: list[tuple[int, int, bool, float, int]] = []
    start = 0
    for number, judgment in enumerate(tiers):
        count = sum(len(tier) for tier in judgment)
        row = rows[number] if rows is not None else range(start, start + count)
        start += count
        strict = [(i, j, False) for i, j in pairs_of(judgment)]
        ties = [
            (tier[i], tier[j], True) for tier in judgment for i in range(len(tier)) for j in range(i + 1, len(tier))
        ]
        weight = 1.0 / max(1, len(strict) + len(ties))
        pairs += [(row[i], row[j], tied, weight, number) for i, j, tied in strict + ties]
    first, second, tied, weights, judgments = zip(*pairs, strict=True) if pairs else ((), (), (), (), ())
    return Pairs(
        torch.tensor(first, dtype=torch.long),
        torch.tensor(second, dtype=torch.long),
        torch.tensor(tied, dtype=torch.bool),
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(judgments, dtype=torch.long),
    )


def preference_nll(margin: Tensor, tied: Tensor, threshold: Tensor | None) -> Tensor:
    """Negative log-likelihood of each pair, in nats. `margin` [..., P] is s_first - s_second, `tied` [P].

    With a threshold (a scalar > 0) ties follow Rao and Kupper. Without one a tie counts as half a win for each side.
    """
    if threshold is None:
        half = -0.5 * (F.logsigmoid(margin) + F.logsigmoid(-margin))
        return torch.where(tied, half, -F.logsigmoid(margin))
    wins, loses = F.logsigmoid(margin - threshold), F.logsigmoid(-margin - threshold)
    tie = torch.log(torch.expm1(2 * threshold)) + wins + loses
    return -torch.where(tied, tie, wins)


def preference_loss(scores: Tensor, pairs: Pairs, threshold: Tensor | None = None) -> Tensor:
    """Mean over judgments of the pairs' negative log-likelihood; `scores` [..., N] may hold several members' rows."""
    margin = scores[..., pairs.first] - scores[..., pairs.second]
    nll = preference_nll(margin, pairs.tied, threshold)
    return (nll * pairs.weight).sum(-1).mean() / pairs.weight.sum().clamp_min(1e-12)


def pair_accuracy(margin: Tensor, tied: Tensor) -> tuple[float, int]:
    """Right answers and their number among pairs with a better side; an exact tie of scores is half right."""
    strict = margin[~tied]
    right = (strict > 0).sum() + 0.5 * (strict == 0).sum()
    return float(right), int(strict.numel())


def calibration_error(margin: Tensor, tied: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015) of sigmoid(|margin|) as the confidence in the higher score.

    Equal-width bins over [0.5, 1]; 0 where no pair has a better side.
    """
    strict = margin[~tied].double()
    if strict.numel() == 0:
        return 0.0
    confidence = torch.sigmoid(strict.abs())
    correct = (strict > 0).double() + 0.5 * (strict == 0).double()
    slot = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, slot, confidence - correct)
    return float(gap.abs().sum() / strict.numel())


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either side is constant."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = a.norm() * b.norm()
    return float(a @ b / norm) if norm > 0 else 0.0
