"""The probe's fit: Bradley and Terry's model (ties by Rao and Kupper) on fixed features, by Newton's method.

The posterior mode of a linear score w with a Gaussian prior, a convex problem: no learning rate, no early stopping, the
same answer whatever the order of the judgments. All in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.training.order import derived_seed
from app.training.reward_losses import Pairs, preference_nll

HIDDEN_PRIOR, LIKELIHOOD_PRIOR = 1.0, 2.0
"""Standard deviation, in log-odds, of the score difference that a block of features may make a priori: each layer's
hidden states, and the likelihood. `prior` multiplies all."""
PRIORS = (0.35, 0.7, 1.0, 1.4)
FOLDS = 5
_LEAST_TIE = 1e-3


@dataclass(frozen=True)
class Design:
    """Feature differences of P pairs, first minus second, in units of the prior, x [P, D]; scale [D] undoes that."""

    x: Tensor
    scale: Tensor
    pairs: Pairs


def design(features: Tensor, pairs: Pairs, hidden: Sequence[int], likelihood: int) -> Design:
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
    return Design(difference * scale, scale, pairs)


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
    """One step for each member; `share` [M, P] weighs the pairs. Ties then move eta, unless they are halved."""
    x, tied = design.x, design.pairs.tied
    learns_ties = fit.eta > 0 and not halve_ties
    eta = fit.eta if learns_ties else 0.0
    margin = fit.weight @ x.T
    lost, won = torch.sigmoid(eta - margin), torch.sigmoid(eta + margin)
    # Slope and curvature in the margin of -log P(win) and -log P(loss); a tie is their sum, or their mean where halved.
    tie = 1.0 if learns_ties else 0.5
    slope = torch.where(tied, tie * (won - lost), -lost)
    curvature = torch.where(tied, tie * (won * (1 - won) + lost * (1 - lost)), lost * (1 - lost))
    identity = torch.eye(x.shape[1], dtype=x.dtype) / prior**2
    updated = []
    for w, s, g, h in zip(fit.weight, share, slope, curvature, strict=True):
        gradient = (s * g) @ x + w / prior**2
        hessian = (x * (s * h).unsqueeze(1)).T @ x + identity
        updated.append(w - torch.cholesky_solve(gradient.unsqueeze(1), torch.linalg.cholesky(hessian))[:, 0])
    weight = torch.stack(updated)
    if learns_ties:
        eta = best_eta((weight.mean(0) @ x.T), tied, design.pairs.weight.double())
    return Fit(weight, eta if learns_ties else fit.eta)


def best_eta(margin: Tensor, tied: Tensor, weight: Tensor) -> float:
    """The threshold of greatest likelihood for these margins, by bisection on a decreasing derivative."""
    low, high = _LEAST_TIE, 10.0
    for _ in range(50):
        eta = 0.5 * (low + high)
        cost = torch.sigmoid(eta - margin) + torch.where(tied, torch.sigmoid(eta + margin), 0.0)
        gain = torch.where(tied, 2.0 / -torch.expm1(torch.tensor(-2.0 * eta, dtype=margin.dtype)), 0.0)
        low, high = (eta, high) if float((weight * (gain - cost)).sum()) > 0 else (low, eta)
    return 0.5 * (low + high)


def folds_of(groups: Sequence[str], pairs: Pairs, seed: int) -> Tensor:
    """The fold of each pair, [P]: all judgments of one prompt (`groups[judgment]`) are in the same."""
    fold = torch.tensor([derived_seed(seed, "fold", group) % FOLDS for group in groups])
    return fold[pairs.judgment]


def cross_validate(design: Design, fold: Tensor, prior: float, steps: int, halve_ties: bool) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and accuracy of pairs that each fit did not see."""
    inside = torch.stack([fold != f for f in range(FOLDS)])
    share = inside * design.pairs.weight.double()
    fit = start(design, FOLDS)
    for _ in range(steps):
        fit = newton_step(design, fit, prior, share, halve_ties)
    margin = (fit.weight @ design.x.T).gather(0, fold.unsqueeze(0))[0]
    eta = torch.tensor(fit.eta, dtype=margin.dtype) if fit.eta > 0 and not halve_ties else None
    weight = design.pairs.weight.double()
    nll = float((preference_nll(margin, design.pairs.tied, eta) * weight).sum() / weight.sum())
    strict = margin[~design.pairs.tied]
    return nll, float((strict > 0).double().mean() + 0.5 * (strict == 0).double().mean())


def resampled(design: Design, judgments: int, members: int, seed: int) -> Tensor:
    """Weights [M, P] of pairs: each member draws judgments with replacement (Breiman 1996); a single one sees all."""
    weight = design.pairs.weight.double()
    if members == 1:
        return weight.unsqueeze(0)
    generator = torch.Generator().manual_seed(derived_seed(seed, "resample"))
    drawn = torch.randint(judgments, (members, judgments), generator=generator)
    counts = torch.zeros(members, judgments, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return counts[:, design.pairs.judgment] * weight
