"""PyTorch's schedulers, averaged weights and gradient scalers do to ours what they do to AdamW."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils

from luma_core import Muon
from tests.core.optim.pytorch.pytorch_inputs import (
    assert_same,
    every,
    loss_of,
    parameters,
    train,
)

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: step / 4),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=9),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.9),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-4),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.StepLR(o, 2)], [2]
    ),
}


@every
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_schedulers_do_what_they_do_to_adamw(optimizer_class, name: str, tensor: bool) -> None:
    if optimizer_class is Muon and tensor and name == "ReduceLROnPlateau":
        pytest.skip("PyTorch lowers a tensor twice that two groups share, of any optimizer")
    found = []
    for each in (optimizer_class, torch.optim.AdamW):
        params = parameters()
        lr = torch.tensor(1e-2) if tensor else 1e-2
        optimizer = each(params, lr=lr, betas=(0.9, 0.999))
        schedule, seen = SCHEDULERS[name](optimizer), []
        for _ in range(6):
            train(optimizer, params, 1)
            schedule.step(*[1.0] * (name == "ReduceLROnPlateau"))
            group = optimizer.param_groups[0]
            assert isinstance(group["lr"], Tensor) == tensor
            seen.append((float(group["lr"]), *map(float, group["betas"])))
        schedule.load_state_dict(schedule.state_dict())
        found.append(seen)
    assert found[0] == found[1]


@every
def test_averaged_weights(optimizer_class) -> None:
    model = nn.Sequential(nn.Linear(40, 8), nn.BatchNorm1d(8))
    averaged = swa_utils.AveragedModel(model)
    optimizer = optimizer_class(model.parameters(), lr=1e-2)
    kept = []
    for seed in range(3):
        x = torch.randn(16, 40, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        (model(x) - x[:, :8]).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        kept.append(model[0].weight.detach().clone())
    torch.testing.assert_close(averaged.module[0].weight, torch.stack(kept).mean(0))


@every
def test_scaled_gradients_are_unscaled_and_skipped(optimizer_class) -> None:
    plain, scaled = parameters(), parameters()
    train(optimizer_class(plain, seed=1), plain, 3)
    optimizer = optimizer_class(scaled, seed=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled)).backward()
        if step == 1:
            scaled[0].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert_same([p.detach() for p in scaled], [p.detach() for p in plain])
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {3}
