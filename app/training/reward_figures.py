"""Figures of a reward model: how often, how surely and how evenly it is right. Pure functions of score differences.

A margin is the score of a pair's better side minus that of the worse; tied pairs have none, and count nowhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.core.agreement import wilson

BINS = 10
COLDEST, HOTTEST = 0.1, 10.0
LEAST_PAIRS = 20
"""Fewer pairs than these say nothing of a temperature."""


class Share(NamedTuple):
    """A share of comparisons, with Wilson's 95 % interval (None where there are none) and what it was counted on."""

    value: float | None
    low: float
    high: float
    comparisons: int
    pairs: int


def pair_accuracy(margin: Tensor, tied: Tensor) -> tuple[float, int]:
    """Right answers and their number among pairs with a better side; an exact tie of scores is half right."""
    right = half_credit(margin[~tied])
    return float(right.sum()), int(right.numel())


def half_credit(margin: Tensor) -> Tensor:
    """1 where a margin is above 0, 0 where below, one half at exactly 0."""
    return (margin > 0).double() + 0.5 * (margin == 0).double()


def share_of(credit: Tensor, comparison: Tensor) -> Tensor:
    """Each comparison's mean credit, [C], in the order of their numbers. credit, comparison [P]."""
    if not len(credit):
        return credit.double()
    _, slot, count = comparison.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(count), dtype=torch.float64).index_add(0, slot, credit.double()) / count


def counted(credit: Tensor, comparison: Tensor) -> Share:
    """The mean over comparisons of their pairs' mean credit, with its interval.

    The trial is the comparison: several votes on it, or the pairs of one ranking, stand or fall together. A mean of
    credits in [0, 1] varies no more than a coin of that mean, so counting it as one toss makes no interval too narrow.
    """
    means = share_of(credit, comparison)
    trials = len(means)
    low, high = wilson(float(means.sum()), trials)
    return Share(float(means.sum()) / trials if trials else None, low, high, trials, len(credit))


class Bin(NamedTuple):
    """Pairs whose confidence lies in [low, high): their number, mean confidence, and the share that came true."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


def reliability(margin: Tensor, tied: Tensor, temperature: float = 1.0, bins: int = BINS) -> list[Bin]:
    """How sure, sigmoid(|margin| / temperature), of the higher score, and how often right: equal bins over [0.5, 1]."""
    strict = margin[~tied].double()
    confidence = torch.sigmoid(strict.abs() / temperature)
    correct = half_credit(strict)
    slot = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    table = []
    for number in range(bins):
        here = slot == number
        some = int(here.sum())
        sure, right = (float(v[here].mean()) if some else None for v in (confidence, correct))
        table.append(Bin(0.5 + 0.5 * number / bins, 0.5 + 0.5 * (number + 1) / bins, some, sure, right))
    return table


def calibration_error(margin: Tensor, tied: Tensor, temperature: float = 1.0, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015): the mean over pairs of their bin's gap between both.

    0 where no pair has a better side.
    """
    table = reliability(margin, tied, temperature, bins)
    total = sum(one.pairs for one in table)
    gaps = (
        one.pairs * abs(one.confidence - one.accuracy) for one in table if one.confidence and one.accuracy is not None
    )
    return sum(gaps) / total if total else 0.0


def mean_nll(margin: Tensor, tied: Tensor, temperature: float = 1.0) -> float | None:
    """Mean -log sigmoid(margin / temperature) of pairs with a better side, in nats; None where there are none."""
    strict = margin[~tied].double()
    return float(-F.logsigmoid(strict / temperature).mean()) if len(strict) else None


def fitted_temperature(margin: Tensor, tied: Tensor, weight: Tensor) -> float | None:
    """The temperature of greatest likelihood (Guo et al. 2017). All [P]; the scores were not fitted to these margins.

    By bisection: the slope of the likelihood in 1 / temperature only falls. Between 0.1 and 10, since margins that are
    all right ask for 0. None for fewer than LEAST_PAIRS pairs with a better side.
    """
    strict, share = margin[~tied].double(), weight[~tied].double()
    if len(strict) < LEAST_PAIRS:
        return None
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = 0.5 * (low + high)
        slope = float((share * strict * torch.sigmoid(-middle * strict)).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 1 / (0.5 * (low + high))


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either side is constant."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    return similarity(a - a.mean(), b - b.mean())


def similarity(a: Tensor, b: Tensor) -> float:
    """The cosine of two vectors; 0 where either is 0. Of differences it is their correlation, whatever way round each
    pair is put."""
    norm = a.norm() * b.norm()
    return float(a @ b / norm) if norm > 0 else 0.0
