"""The probe's fit against optima found by other means."""

import math

import pytest
import torch

from app.training.reward_fit import (
    Design,
    Fit,
    best_eta,
    cross_validate,
    design,
    drawn,
    folds_of,
    newton_step,
    resampled,
    start,
)
from app.training.reward_losses import Pairs, objective, pairs_of_judgments


def toy(count: int = 40, ties: int = 0) -> tuple[torch.Tensor, Pairs]:
    """Two features an answer; the first decides, noisily."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2 * count, 2, generator=generator)
    noise = torch.randn(count, generator=generator)
    tiers: list[list[list[int]]] = []
    for i in range(count):
        better = features[2 * i, 0] - features[2 * i + 1, 0] + noise[i] > 0
        tiers.append([[0, 1]] if i < ties else [[0], [1]] if better else [[1], [0]])
    return features, pairs_of_judgments(tiers)


def fitted(made: Design, prior: float, halve: bool = False, steps: int = 12) -> Fit:
    fit = start(made, 1)
    for _ in range(steps):
        fit = newton_step(made, fit, prior, made.pairs.weight.double().unsqueeze(0), halve)
    return fit


def posterior(made: Design, weight: torch.Tensor, eta: torch.Tensor | None, prior: float) -> torch.Tensor:
    nll = objective(made.x @ weight, made.pairs, eta, made.smoothing)
    return (nll * made.pairs.weight).sum() + 0.5 * weight.square().sum() / prior**2


@pytest.mark.parametrize(("ties", "halve"), [(0, False), (8, False), (8, True)])
def test_newton_ends_where_the_gradient_of_the_posterior_is_zero(ties: int, halve: bool) -> None:
    features, pairs = toy(ties=ties)
    made = design(features, pairs, [2], 0)
    fit = fitted(made, 1.0, halve, steps=40)
    weight = fit.weight[0].clone().requires_grad_(True)
    eta = torch.tensor(fit.eta, dtype=torch.float64, requires_grad=True)
    posterior(made, weight, None if halve or not ties else eta, 1.0).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-6
    if eta.grad is not None:
        assert abs(float(eta.grad)) < 1e-6


@pytest.mark.parametrize("variant", ["margins", "smoothing", "plackett-luce", "averaged votes"])
def test_newton_ends_where_autograd_finds_no_slope_whatever_is_minimised(variant: str) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(90, 3, generator=generator)
    quality = features[:, 0] + 0.7 * torch.randn(90, generator=generator)
    tiers: list[list[list[int]]] = []
    for first in range(0, 90, 3):
        order = quality[first : first + 3].argsort(descending=True).tolist()
        tiers.append([[order[0], order[1]], [order[2]]] if first % 4 == 0 else [[i] for i in order])
    pairs = pairs_of_judgments(
        tiers,
        units=[i // 2 for i in range(30)] if variant == "averaged votes" else None,
        asked=[0.5 * (i % 3) for i in range(30)] if variant == "margins" else None,
        plackett_luce=variant == "plackett-luce",
    )
    made = design(features, pairs, [3], 0, smoothing=0.1 if variant == "smoothing" else 0.0)
    fit = fitted(made, 1.0, steps=40)
    weight = fit.weight[0].clone().requires_grad_(True)
    eta = torch.tensor(fit.eta, dtype=torch.float64, requires_grad=True)
    posterior(made, weight, eta, 1.0).backward()
    assert weight.grad is not None
    assert eta.grad is not None
    assert float(weight.grad.abs().max()) < 1e-6
    assert abs(float(eta.grad)) < 1e-6
    # And one step from elsewhere is Newton's own, by autograd's slope and curvature.
    somewhere = Fit(0.3 * torch.ones(1, 3, dtype=torch.float64), 0.5)

    def value(at: torch.Tensor) -> torch.Tensor:
        return posterior(made, at, torch.tensor(0.5, dtype=torch.float64), 1.0)

    at = somewhere.weight[0].clone().requires_grad_(True)
    slope = torch.autograd.grad(value(at), at)[0]
    curvature = torch.autograd.functional.hessian(value, somewhere.weight[0])
    expected = somewhere.weight[0] - torch.linalg.solve(curvature, slope)
    step = newton_step(made, somewhere, 1.0, made.pairs.weight.double().unsqueeze(0), halve_ties=False)
    assert torch.allclose(step.weight[0], expected, atol=1e-6)


def test_one_pair_has_the_mode_that_a_hand_finds() -> None:
    # x = 1, prior 1: minimise log(1 + exp(-w)) + w^2 / 2, so w = sigmoid(-w): w = 0.401058.
    pairs = pairs_of_judgments([[[0], [1]]])
    made = Design(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), pairs)
    assert fitted(made, 1.0).weight.item() == pytest.approx(0.401058, abs=1e-6)


def test_a_margin_far_away_is_reached_without_leaping_over_it_and_back() -> None:
    # 24 pairs with x = 1, asked for 9, prior 3: minimise 24 log(1 + exp(9 - w)) + w^2 / 18, so w = 216 sigmoid(9 - w).
    pairs = pairs_of_judgments([[[0], [1]]] * 24, asked=[9.0] * 24)
    made = Design(torch.ones(24, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), pairs)
    assert fitted(made, 3.0, steps=20).weight.item() == pytest.approx(11.846812, abs=1e-5)


def test_equal_scores_with_half_ties_have_the_threshold_of_rao_and_kupper() -> None:
    # At margin 0 P(tie) = (e^eta - 1) / (e^eta + 1) = tanh(eta / 2); half ties: eta = 2 artanh(1/2) = ln 3.
    pairs = pairs_of_judgments([[[0, 1]], [[0, 1]], [[0], [1]], [[0], [1]]])
    assert best_eta(torch.zeros(4, dtype=torch.float64), pairs) == pytest.approx(math.log(3), abs=1e-6)


def test_the_design_undoes_the_units_of_the_features() -> None:
    features, pairs = toy()
    fit = fitted(made := design(features, pairs, [2], 0), 1.0)
    other = fitted(scaled := design(features * 100, pairs, [2], 0), 1.0)
    assert torch.allclose(fit.weight * made.scale, 100 * other.weight * scaled.scale, atol=1e-9)


def test_likelihood_features_of_any_unit_weigh_alike() -> None:
    features, pairs = toy()
    made = design(features * torch.tensor([1000.0, 0.001]), pairs, [], 2)
    first, second = made.x.square().mean(0).tolist()
    assert first == pytest.approx(second, rel=1e-6)


def test_the_judgments_order_does_not_matter() -> None:
    features, pairs = toy()
    turned = Pairs(*(field.flip(0) for field in pairs))
    a, b = fitted(design(features, pairs, [2], 0), 1.0), fitted(design(features, turned, [2], 0), 1.0)
    assert torch.allclose(a.weight, b.weight, atol=1e-12)


def test_folds_keep_a_prompt_together() -> None:
    _, pairs = toy(6)
    fold = folds_of(["a", "b", "a", "c", "b", "a"], pairs, seed=0)
    assert fold[0] == fold[2] == fold[5]
    assert fold[1] == fold[4]


def test_cross_validation_prefers_a_prior_that_can_learn_to_one_that_cannot() -> None:
    features, pairs = toy(100)
    made = design(features, pairs, [2], 0)
    fold = folds_of([str(i) for i in range(100)], pairs, seed=0)
    able = cross_validate(made, fold, 1.0, 10, False)
    unable = cross_validate(made, fold, 1e-3, 10, False)
    assert unable.loss == pytest.approx(math.log(2), abs=1e-3)
    assert able.loss < 0.6
    assert able.accuracy > 0.7


def test_a_pair_is_foreseen_without_having_been_learnt_from() -> None:
    features, pairs = toy(50)
    fold = folds_of([str(i) for i in range(50)], pairs, seed=0)
    seen = cross_validate(design(features, pairs, [2], 0), fold, 1.0, 10, False).margin
    one = int((fold == 0).nonzero()[0])
    turned = pairs._replace(first=pairs.first.clone(), second=pairs.second.clone())
    turned.first[one], turned.second[one] = pairs.second[one], pairs.first[one]
    other = cross_validate(design(features, turned, [2], 0), fold, 1.0, 10, False).margin
    # Its label turned round, the same pair is foreseen the same, with the sign turned; the other folds are not.
    assert other[one].item() == pytest.approx(-seen[one].item(), abs=1e-9)
    assert not torch.allclose(other[fold != 0], seen[fold != 0], atol=1e-6)


def test_resampled_judgments_keep_their_number() -> None:
    features, pairs = toy(30)
    share = resampled(design(features, pairs, [2], 0), 30, 5, seed=0)
    assert share.sum(1).tolist() == [30.0] * 5
    assert not torch.equal(share[0], share[1])
    assert resampled(design(features, pairs, [2], 0), 30, 1, seed=0).tolist() == [[1.0] * 30]


def test_a_unit_is_drawn_whole() -> None:
    features, _ = toy(30)
    pairs = pairs_of_judgments([[[0], [1]]] * 30, units=[i // 3 for i in range(30)])
    share = resampled(design(features, pairs, [2], 0), 10, 4, seed=0)
    assert share.sum(1).tolist() == pytest.approx([10.0] * 4)
    assert torch.equal(share[:, 0], share[:, 1])
    assert torch.equal(share[:, 0], share[:, 2])
    assert drawn(10, 4, seed=0).sum(1).tolist() == [10.0] * 4
    assert drawn(10, 1, seed=0).tolist() == [[1.0] * 10]
