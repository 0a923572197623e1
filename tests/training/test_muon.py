import pytest
import torch
from torch import nn

from app.training.muon import Muon, orthogonalised

SHAPES = [(6, 6), (6, 6), (6, 10), (10, 6), (3, 10)]


def test_a_step_is_torchs_own_but_for_its_rounding() -> None:
    def trained(ours: bool) -> list[nn.Parameter]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
        settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
        optimizer: torch.optim.Optimizer = (
            Muon(params, **settings) if ours else torch.optim.Muon(params, adjust_lr_fn="match_rms_adamw", **settings)
        )
        for _ in range(4):
            for parameter in params:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        return params

    for expected, found in zip(trained(ours=False), trained(ours=True), strict=True):
        # bf16 has three digits, and four updates move an element by about 4 x 0.2 x 0.02.
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_singular_values_move_to_about_one_and_directions_stay() -> None:
    torch.manual_seed(1)
    matrices = [torch.randn(5, 9) for _ in range(3)]
    for matrix, found in zip(matrices, orthogonalised(matrices), strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        moved = u.T @ found @ v.T
        assert moved.diagonal().tolist() == pytest.approx([1.0] * 5, abs=0.35)
        assert float((moved - moved.diagonal().diag()).abs().max()) < 1e-4


def test_each_matrix_is_treated_as_if_it_were_alone() -> None:
    torch.manual_seed(2)
    matrices = [torch.randn(4, 7) * 10.0**k for k in range(3)]
    together = orthogonalised(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, orthogonalised([matrix])[0], atol=1e-5, rtol=1e-5)


def test_a_parameter_without_gradient_and_a_gradient_of_zero_move_nothing() -> None:
    still, zero = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    zero.grad = torch.zeros(2, 3)
    Muon([still, zero], lr=0.1, weight_decay=0.0, momentum=0.9).step()
    assert torch.equal(still, torch.ones(2, 3))
    assert torch.equal(zero, torch.ones(2, 3))
