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
    folds_of,
    newton_step,
    resampled,
    start,
)
from app.training.reward_losses import Pairs, pairs_of_judgments, preference_nll


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


def objective(made: Design, weight: torch.Tensor, eta: float | None, prior: float) -> torch.Tensor:
    threshold = torch.tensor(eta, dtype=torch.float64) if eta else None
    nll = preference_nll(made.x @ weight, made.pairs.tied, threshold)
    return (nll * made.pairs.weight).sum() + 0.5 * weight.square().sum() / prior**2


@pytest.mark.parametrize(("ties", "halve"), [(0, False), (8, False), (8, True)])
def test_newton_ends_where_the_gradient_of_the_posterior_is_zero(ties: int, halve: bool) -> None:
    features, pairs = toy(ties=ties)
    made = design(features, pairs, [2], 0)
    fit = fitted(made, 1.0, halve, steps=40)
    weight = fit.weight[0].clone().requires_grad_(True)
    objective(made, weight, None if halve or not ties else fit.eta, 1.0).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-6


def test_one_pair_has_the_mode_that_a_hand_finds() -> None:
    # x = 1, prior 1: minimise log(1 + exp(-w)) + w^2 / 2, so w = sigmoid(-w): w = 0.401058.
    pairs = pairs_of_judgments([[[0], [1]]])
    made = Design(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), pairs)
    assert fitted(made, 1.0).weight.item() == pytest.approx(0.401058, abs=1e-6)


def test_equal_scores_with_half_ties_have_the_threshold_of_rao_and_kupper() -> None:
    # At margin 0 P(tie) = (e^eta - 1) / (e^eta + 1) = tanh(eta / 2); half ties: eta = 2 artanh(1/2) = ln 3.
    eta = best_eta(
        torch.zeros(4, dtype=torch.float64), torch.tensor([True, True, False, False]), torch.ones(4).double()
    )
    assert eta == pytest.approx(math.log(3), abs=1e-6)


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
    able, right = cross_validate(made, fold, 1.0, 10, False)
    unable, _ = cross_validate(made, fold, 1e-3, 10, False)
    assert unable == pytest.approx(math.log(2), abs=1e-3)
    assert able < 0.6
    assert right > 0.7


def test_resampled_judgments_keep_their_number() -> None:
    features, pairs = toy(30)
    share = resampled(design(features, pairs, [2], 0), 30, 5, seed=0)
    assert share.sum(1).tolist() == [30.0] * 5
    assert not torch.equal(share[0], share[1])
    assert resampled(design(features, pairs, [2], 0), 30, 1, seed=0).tolist() == [[1.0] * 30]
