"""Losses of a reward model: pure functions of scores, no model in sight.

Bradley and Terry (1952): P(i beats j) = sigmoid(s_i - s_j). Rao and Kupper (1967) add ties by a threshold eta >= 0:
P(i beats j) = sigmoid(s_i - s_j - eta) and P(tie) = (exp(2 eta) - 1) P(i beats j) P(j beats i). Luce (1959) and
Plackett (1975) rank by choices: the best of all, then the best of what is left, each by a softmax of scores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.core.pairing import Tiers, pairs_of

STRONGEST = 4
ALONE = -1


class Pairs(NamedTuple):
    """Pairs of completions by their rows in a table of scores; `tied` pairs have no better side. All of shape [P]."""

    first: Tensor
    second: Tensor
    tied: Tensor
    weight: Tensor
    """1 over all pairs of a unit."""
    judgment: Tensor
    """Which judgment a pair comes from."""
    unit: Tensor
    """What is drawn and weighed as one: the judgment, or its comparison where votes are averaged."""
    asked: Tensor
    """The margin that the difference of scores is asked for, in log-odds."""
    choice: Tensor
    """Pairs of one choice share their better side, which was chosen among all of theirs at once; ALONE: one pair."""

    def where(self, mask: Tensor) -> "Pairs":
        """Some of the pairs. mask [P]."""
        return Pairs(*(field[mask] for field in self))


def pairs_of_judgments(
    tiers: Sequence[Tiers],
    rows: Sequence[Sequence[int]] | None = None,
    *,
    units: Sequence[int] | None = None,
    asked: Sequence[float] | None = None,
    plackett_luce: bool = False,
) -> Pairs:
    """Every pair of every judgment, the better completion first, with weight 1 / C(K, 2): each judgment weighs one.

    `rows[j]` are the rows of judgment j's K completions; without it rows count through the judgments in order.
    Completions of one tier make tied pairs. The judgments of one unit, `units[j]`, share its weight of one: their mean
    loss is the cross-entropy against their mean, the soft label of several votes. `asked[j]` is the margin of judgment
    j's preferences. With `plackett_luce` a ranking without ties is K - 1 choices that share its weight.
    """
    unit_of = units if units is not None else range(len(tiers))
    votes = torch.bincount(torch.tensor(unit_of, dtype=torch.long)).tolist() if len(tiers) else []
    columns: list[tuple[int, int, bool, float, int, int, float, int]] = []
    start = 0
    for number, judgment in enumerate(tiers):
        count = sum(len(tier) for tier in judgment)
        row = rows[number] if rows is not None else range(start, start + count)
        base, start = start, start + count
        strict = [(i, j, False) for i, j in pairs_of(judgment)]
        ties = [
            (tier[i], tier[j], True) for tier in judgment for i in range(len(tier)) for j in range(i + 1, len(tier))
        ]
        share = 1.0 / votes[unit_of[number]]
        ranked = plackett_luce and not ties
        place = {tier[0]: n for n, tier in enumerate(judgment)} if ranked else {}
        for i, j, tied in strict + ties:
            behind = count - 1 - place[i] if ranked else 0
            weight = share / ((count - 1) * behind if ranked else len(strict) + len(ties))
            choice = base + place[i] if behind > 1 else ALONE
            bar = asked[number] if asked is not None and not tied else 0.0
            columns.append((row[i], row[j], tied, weight, number, unit_of[number], bar, choice))
    first, second, tied_, weights, judgments, units_, bars, choice_ = (
        zip(*columns, strict=True) if columns else ((),) * 8
    )
    whole, real = torch.long, torch.float32
    return Pairs(
        torch.tensor(first, dtype=whole),
        torch.tensor(second, dtype=whole),
        torch.tensor(tied_, dtype=torch.bool),
        torch.tensor(weights, dtype=real),
        torch.tensor(judgments, dtype=whole),
        torch.tensor(units_, dtype=whole),
        torch.tensor(bars, dtype=real),
        torch.tensor(choice_, dtype=whole),
    )


def margin_of(strength: int | None, largest: float) -> float:
    """The margin m(strength) of Llama 2 (Touvron et al. 2023, section 3.2.2), 0 for strength 1, `largest` for 4.

    With `largest` 1 these are their small margins 0, 1/3, 2/3, 1, with 3 their large ones 0, 1, 2, 3.
    """
    return largest * (strength - 1) / (STRONGEST - 1) if strength is not None else 0.0


def preference_nll(
    margin: Tensor, tied: Tensor, threshold: Tensor | None, asked: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each pair, in nats. `margin` [..., P] is s_first - s_second, `tied` and `asked` [P].

    With a threshold (a scalar > 0) ties follow Rao and Kupper. Without one a tie counts as half a win for each side.
    `asked` is taken off a preference's margin. `smoothing` is the probability that a preference is the wrong way round:
    the conservative loss of Mitchell (2023), on cDPO.
    """
    bar = 0.0 if asked is None else asked
    if threshold is not None:
        bar = threshold + bar
    wins, loses = F.logsigmoid(margin - bar), F.logsigmoid(-margin - bar)
    tie = 0.5 * (wins + loses) if threshold is None else torch.log(torch.expm1(2 * threshold)) + wins + loses
    if smoothing:
        wins = (1 - smoothing) * wins + smoothing * loses
    return -torch.where(tied, tie, wins)


def objective(margin: Tensor, pairs: Pairs, threshold: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """What is minimised, for each pair, in nats: margin [..., P] -> [..., P], to be weighed and summed.

    The pairs of one choice all carry the choice's loss, -log softmax = log(1 + sum over its pairs of exp(-margin)).
    """
    nll = preference_nll(margin, pairs.tied, threshold, pairs.asked, smoothing)
    if not ranks(pairs):
        return nll
    slot, shared = choices(pairs)
    bar = pairs.asked if threshold is None else threshold + pairs.asked
    _, total, top = _race(margin - bar, slot)
    return torch.where(shared, top + torch.log(total), nll)


def chance_of_worse(margin: Tensor, pairs: Pairs) -> Tensor:
    """How probable the model holds it that the worse side of each pair had been chosen: margin [..., P] -> [..., P].

    Thresholds and margins asked for are already off `margin`. With its sign turned, the slope of a choice's loss.
    """
    alone = torch.sigmoid(-margin)
    if not ranks(pairs):
        return alone
    slot, shared = choices(pairs)
    odds, total, _ = _race(margin, slot)
    return torch.where(shared, odds / total, alone)


def ranks(pairs: Pairs) -> bool:
    """Whether any choice has several pairs."""
    return bool((pairs.choice != ALONE).any())


def choices(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The place [P] of each pair's choice among the choices, and which pairs [P] are of one with several."""
    return pairs.choice.unique(return_inverse=True)[1], pairs.choice != ALONE


def sum_by(values: Tensor, slot: Tensor) -> Tensor:
    """Sums over the pairs of one slot, given back to each of them. [..., P], [P] -> [..., P]."""
    return torch.zeros_like(values).index_add(-1, slot, values)[..., slot]


def _race(margin: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(-margin) of each pair, and 1 + its sum over the pair's choice, both divided by exp(top) so that none
    overflows; and top."""
    place = slot.expand_as(margin)
    top = torch.zeros_like(margin).scatter_reduce(-1, place, -margin.detach(), "amax").gather(-1, place)
    odds = torch.exp(-margin - top)
    return odds, torch.exp(-top) + sum_by(odds, slot), top


def preference_loss(
    scores: Tensor, pairs: Pairs, threshold: Tensor | None = None, smoothing: float = 0.0, share: Tensor | None = None
) -> Tensor:
    """Mean over units of the pairs' loss; `scores` [..., N] may hold several members' rows, whose mean is returned.

    `share` [..., P], where members learn from resampled judgments, stands for the weights above the line.
    """
    margin = scores[..., pairs.first] - scores[..., pairs.second]
    nll = objective(margin, pairs, threshold, smoothing)
    weight = pairs.weight if share is None else share
    return (nll * weight).sum(-1).mean() / pairs.weight.sum().clamp_min(1e-12)
