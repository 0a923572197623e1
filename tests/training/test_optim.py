import math

import pytest
import torch
from torch import nn

from app.training.failures import RunFailure
from app.training.optim import MuonAdamW, lr_factor


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"embed": nn.Embedding(7, 4), "inner": nn.Linear(4, 6), "score": nn.Linear(6, 1)})


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model["score"](torch.tanh(model["inner"](model["embed"](tokens)))).square().mean()


def train(model: nn.Module, optimizer: MuonAdamW, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, torch.tensor([step % 7, 3])).backward()
        optimizer.step(1.0, lr_factor(optimizer.updates, 10))


def optimizer_of(model: nn.Module) -> MuonAdamW:
    return MuonAdamW(model.named_parameters(), lr=0.01, muon_lr=0.02, weight_decay=0.1)


def test_the_schedule_warms_up_and_falls() -> None:
    assert [lr_factor(i, 10, warmup=4) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_factor(7, 10, warmup=4) == 0.5
    assert lr_factor(10, 10, warmup=4) == 0.0
    assert lr_factor(9, 10, schedule="constant") == 1.0
    assert lr_factor(5, 10, schedule="cosine") == pytest.approx(0.5)
    assert lr_factor(10, 10, schedule="linear", floor=0.1) == pytest.approx(0.1)
    assert lr_factor(0, 1) == 1.0


def test_muon_takes_the_hidden_matrices_alone() -> None:
    model = net()
    optimizer = optimizer_of(model)
    train(model, optimizer, 1)
    buffers = {name: set(state) for name, state in optimizer.state_dict()["state"].items()}
    adam = {"step", "exp_avg", "exp_avg_sq"}
    assert buffers == {
        "inner.weight": {"momentum_buffer"},
        "inner.bias": adam,
        "embed.weight": adam,
        "score.weight": adam,
        "score.bias": adam,
    }


def test_without_muon_it_is_torchs_adamw() -> None:
    ours, theirs = net(), net()
    optimizer = MuonAdamW(ours.named_parameters(), lr=0.01)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        for model in (ours, theirs):
            loss_of(model, torch.tensor([step, 1])).backward()
        optimizer.step(clip=math.inf)
        adamw.step()
        optimizer.zero_grad()
        adamw.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)  # fused, the order of sums is another


def test_a_saved_optimizer_goes_on_bit_for_bit() -> None:
    whole, first = net(), net()
    train(whole, optimizer_of(whole), 6)
    optimizer = optimizer_of(first)
    train(first, optimizer, 3)
    second = net(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.updates == 3
    for step in range(3, 6):
        resumed.zero_grad()
        loss_of(second, torch.tensor([step % 7, 3])).backward()
        resumed.step(1.0, lr_factor(resumed.updates, 10))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_gradient_is_clipped_to_the_norm_and_the_norm_before_is_returned() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = MuonAdamW([("p", parameter)], lr=0.1)
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optimizer.step(clip=1.0) == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = MuonAdamW([("p", parameter)], lr=0.1)
    parameter.grad = torch.tensor([float("nan"), 1.0])
    with pytest.raises(RunFailure) as failure:
        optimizer.step(clip=1.0)
    assert failure.value.error.kind == "diverged"
    assert torch.equal(parameter, torch.zeros(2))
