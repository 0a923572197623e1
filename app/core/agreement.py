"""Intervals and rates that stand beside every figure shown."""

import math
from collections.abc import Sequence


def wilson(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); (0, 1) where there are no trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def longer_wins(chosen: Sequence[str], rejected: Sequence[str]) -> float:
    """Accuracy of 'the longer answer wins', length in whitespace-separated words, equal lengths one half."""
    if not chosen:
        return 0.5
    lengths = [(len(c.split()), len(r.split())) for c, r in zip(chosen, rejected, strict=True)]
    return sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in lengths) / len(lengths)


def raw_agreement(votes: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Share of agreeing pairs of votes over all items, and the number of such pairs; (0, 0) where nobody met."""
    agree = total = 0
    for item in votes:
        n = len(item)
        total += n * (n - 1) // 2
        agree += sum(item[i] == item[j] for i in range(n) for j in range(i + 1, n))
    return (agree / total if total else 0.0), total
