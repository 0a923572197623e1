"""The probe's fit: Bradley and Terry's model (ties by Rao and Kupper) on fixed features, by Newton's method.

The posterior mode of a linear score w with a Gaussian prior, a convex problem: no learning rate, no early stopping, the
same answer whatever the order of the judgments. All in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from app.training.order import derived_seed
from app.training.reward_figures import pair_accuracy
from app.training.reward_losses import ALONE, Pairs, chance_of_worse, choices, objective, ranks, sum_by

HIDDEN_PRIOR, LIKELIHOOD_PRIOR = 1.0, 2.0
"""Standard deviation, in log-odds, of the score difference that a block of features may make a priori: each layer's
hidden states, and the likelihood. `prior` multiplies all."""
PRIORS = (0.35, 0.7, 1.0, 1.4)
FOLDS = 5
_LEAST_TIE = 1e-3
_HALVINGS, _ROUNDING = 30, 1e-12


@dataclass(frozen=True)
class Design:
    """Feature differences of P pairs, first minus second, in units of the prior, x [P, D]; scale [D] undoes that.

    `smoothing` is the share of preferences taken to be the wrong way round.
    """

    x: Tensor
    scale: Tensor
    pairs: Pairs
    smoothing: float = 0.0


def design(features: Tensor, pairs: Pairs, hidden: Sequence[int], likelihood: int, smoothing: float = 0.0) -> Design:
    """Differences of the features [N, D], scaled so that a standard normal w is the prior.

    D is made of blocks: the widths of the layers' hidden states, then that of the likelihood, whose features are first
    brought to equal variances: they have different units.
    """
    difference = (features[pairs.first] - features[pairs.second]).double()
    scales = []
    for part in difference[:, : sum(hidden)].split(list(hidden), 1):
        scales.append(torch.full((part.shape[1],), HIDDEN_PRIOR / _norm(part), dtype=torch.float64))
    if likelihood:
        part = difference[:, sum(hidden) :]
        scale = 1 / part.pow(2).mean(0).sqrt().clamp_min(1e-6)
        scales.append(scale * LIKELIHOOD_PRIOR / _norm(part * scale))
    scale = torch.cat(scales)
    return Design(difference * scale, scale, pairs, smoothing)


def _norm(part: Tensor) -> float:
    """Root mean square of the rows' lengths."""
    return max(1e-9, float(part.pow(2).sum(1).mean().sqrt()))


@dataclass(frozen=True)
class Fit:
    """weight [M, D] in units of the prior, and the tie threshold eta (0: no ties to learn from)."""

    weight: Tensor
    eta: float


def start(design: Design, members: int) -> Fit:
    """Where Newton's method begins."""
    learns_ties = bool(design.pairs.tied.any())
    return Fit(torch.zeros(members, design.x.shape[1], dtype=torch.float64), 0.1 if learns_ties else 0.0)


def newton_step(design: Design, fit: Fit, prior: float, share: Tensor, halve_ties: bool) -> Fit:
    """One step for each member; `share` [M, P] weighs the pairs. Ties then move eta, unless they are halved.

    A step that would make things worse is halved until it does not: far from a margin that is asked for, the loss is
    so straight that Newton's method leaps over its minimum and back.
    """
    x, tied, wrong = design.x, design.pairs.tied, design.smoothing
    learns_ties = fit.eta > 0 and not halve_ties
    bar = (fit.eta if learns_ties else 0.0) + design.pairs.asked.double()
    margin = fit.weight @ x.T
    lost, won = chance_of_worse(margin - bar, design.pairs), torch.sigmoid(bar + margin)
    # Slope and curvature in the margin of -log P(win) and -log P(loss); a tie is their sum, or their mean where halved.
    tie = 1.0 if learns_ties else 0.5
    slope = torch.where(tied, tie * (won - lost), wrong * won - (1 - wrong) * lost)
    both = won * (1 - won), lost * (1 - lost)
    curvature = torch.where(tied, tie * (both[0] + both[1]), wrong * both[0] + (1 - wrong) * both[1])
    posterior = partial(_posterior, design, share, prior, fit.eta if learns_ties else None)
    ranked = ranks(design.pairs)
    if ranked:  # softmax: the pairs of a choice carry its whole weight, and curb each other
        share, curvature = _whole(share, design.pairs), torch.where(design.pairs.choice != ALONE, lost, curvature)
    identity = torch.eye(x.shape[1], dtype=x.dtype) / prior**2
    directions = []
    for w, s, g, h, q in zip(fit.weight, share, slope, curvature, lost, strict=True):
        gradient = (s * g) @ x + w / prior**2
        hessian = (x * (s * h).unsqueeze(1)).T @ x + identity
        if ranked:
            mean, whole = _of_choices(x, s, q, design.pairs)
            hessian -= (mean * whole.unsqueeze(1)).T @ mean
        directions.append(torch.cholesky_solve(gradient.unsqueeze(1), torch.linalg.cholesky(hessian))[:, 0])
    direction, length = torch.stack(directions), torch.ones(len(fit.weight), 1, dtype=x.dtype)
    before = posterior(fit.weight)
    for _ in range(_HALVINGS):
        worse = posterior(fit.weight - length * direction) > before + _ROUNDING * before.abs()
        if not bool(worse.any()):
            break
        length = torch.where(worse.unsqueeze(1), 0.5 * length, length)
    weight = fit.weight - length * direction
    if not learns_ties:
        return Fit(weight, fit.eta)
    return Fit(weight, best_eta(weight.mean(0) @ x.T, design.pairs, wrong))


def _posterior(design: Design, share: Tensor, prior: float, eta: float | None, weight: Tensor) -> Tensor:
    """What each member minimises, [M]: minus the logarithm of its posterior, up to a constant."""
    threshold = torch.tensor(eta, dtype=weight.dtype) if eta is not None else None
    nll = objective(weight @ design.x.T, design.pairs, threshold, design.smoothing)
    return (nll * share).sum(1) + 0.5 * weight.square().sum(1) / prior**2


def _whole(share: Tensor, pairs: Pairs) -> Tensor:
    """The weight of each pair's whole choice, [..., P]: the pairs of a choice share it."""
    if not ranks(pairs):
        return share
    slot, shared = choices(pairs)
    return torch.where(shared, sum_by(share, slot), share)


def _of_choices(x: Tensor, share: Tensor, lost: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The expected difference [C, D] of each choice with several pairs (0 for the others), and its weight [C]."""
    slot, shared = choices(pairs)
    count = int(slot.max()) + 1
    mean = x.new_zeros(count, x.shape[1]).index_add(0, slot[shared], x[shared] * lost[shared].unsqueeze(1))
    return mean, x.new_zeros(count).index_copy(0, slot, share)


def best_eta(margin: Tensor, pairs: Pairs, smoothing: float = 0.0) -> float:
    """The threshold of greatest likelihood for these margins [P], by bisection on a decreasing derivative."""
    low, high = _LEAST_TIE, 10.0
    tied, asked = pairs.tied, pairs.asked.double()
    weight = _whole(pairs.weight.double(), pairs)
    for _ in range(50):
        eta = 0.5 * (low + high)
        lost, won = chance_of_worse(margin - asked - eta, pairs), torch.sigmoid(margin + asked + eta)
        cost = torch.where(tied, lost + won, (1 - smoothing) * lost + smoothing * won)
        gain = torch.where(tied, 2.0 / -torch.expm1(torch.tensor(-2.0 * eta, dtype=margin.dtype)), 0.0)
        low, high = (eta, high) if float((weight * (gain - cost)).sum()) > 0 else (low, eta)
    return 0.5 * (low + high)


def folds_of(groups: Sequence[str], pairs: Pairs, seed: int) -> Tensor:
    """The fold of each pair, [P]: all judgments of one prompt (`groups[judgment]`) are in the same."""
    fold = torch.tensor([derived_seed(seed, "fold", group) % FOLDS for group in groups])
    return fold[pairs.judgment]


class Foreseen(NamedTuple):
    """What cross-validation found: mean loss (nats), accuracy, and the margin [P] of each pair by a fit blind to it."""

    loss: float
    accuracy: float
    margin: Tensor


def cross_validate(design: Design, fold: Tensor, prior: float, steps: int, halve_ties: bool) -> Foreseen:
    """Fit without each fold in turn, and look at the pairs that each fit did not see."""
    inside = torch.stack([fold != f for f in range(FOLDS)])
    share = inside * design.pairs.weight.double()
    fit = start(design, FOLDS)
    for _ in range(steps):
        fit = newton_step(design, fit, prior, share, halve_ties)
    margin = (fit.weight @ design.x.T).gather(0, fold.unsqueeze(0))[0]
    eta = torch.tensor(fit.eta, dtype=margin.dtype) if fit.eta > 0 and not halve_ties else None
    weight = design.pairs.weight.double()
    nll = float((objective(margin, design.pairs, eta, design.smoothing) * weight).sum() / weight.sum())
    right, count = pair_accuracy(margin, design.pairs.tied)
    return Foreseen(nll, right / count, margin)


def resampled(design: Design, units: int, members: int, seed: int) -> Tensor:
    """Weights [M, P] of pairs: each member draws units with replacement (Breiman 1996); a single one sees all."""
    weight = design.pairs.weight.double()
    return weight * drawn(units, members, seed)[:, design.pairs.unit]


def drawn(units: int, members: int, seed: int) -> Tensor:
    """How often each member drew each unit, [M, units]; once each for a single member."""
    if members == 1:
        return torch.ones(1, units, dtype=torch.float64)
    generator = torch.Generator().manual_seed(derived_seed(seed, "resample"))
    picked = torch.randint(units, (members, units), generator=generator)
    return torch.zeros(members, units, dtype=torch.float64).scatter_add_(
        1, picked, torch.ones(members, units, dtype=torch.float64)
    )
