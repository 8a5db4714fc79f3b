"""Steps on the CPU are described once and taken in one call, with the bits of steps one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LUMA, AdamMini, TurboAdam
from luma_core.backends.native import NATIVE
from luma_kernels.cpu import plan
from luma_kernels.cpu.library import NativeLibrary

SHAPES = [(64, 64), (5, 300), (7,), (), (0, 3), (33, 130)]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16)
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtypes[index % 2]))
        for index, shape in enumerate(SHAPES)
    ]


def luma(params: list[nn.Parameter]) -> LUMA:
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 3e-3}]
    optimizer = LUMA(groups, lr=1e-2, seed=0, min_compress_elements=0)
    for group, bound in zip(optimizer.param_groups, (None, 0.5), strict=True):
        group["max_grad_norm"] = bound
    return optimizer


def turbo(params: list[nn.Parameter]) -> TurboAdam:
    return TurboAdam(params, preset="5bit", seed=0)


def mini(params: list[nn.Parameter]) -> AdamMini:
    return AdamMini([(f"p{i}", param) for i, param in enumerate(params)], seed=0)


Make = Callable[[list[nn.Parameter]], Any]


def train(make: Make) -> dict[str, Tensor]:
    """Take steps between which all changes that may: gradients, options, learning rates, state."""
    params, generator = parameters(), torch.Generator().manual_seed(1)
    optimizer = make(params)
    for step in range(9):
        for index, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = None if (index, step) == (2, 3) else grad
        group = optimizer.param_groups[0]
        if step == 2:
            assert params[0].grad is not None
            params[0].grad[3, 7] = float("inf")
        if step == 4:
            assert params[1].grad is not None
            params[1].grad = params[1].grad.t().contiguous().t()
            group["lr"] = torch.tensor(0.02)
        if step == 5:
            group["maximize"] = True
            group["lr"] = torch.tensor([0.02])
        if step == 6:
            group["lr"] = 1e-3
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    found = {f"{i}.param": param.detach() for i, param in enumerate(params)}
    for index, param in enumerate(params):
        found |= {f"{index}.{key}": value for key, value in optimizer.state[param].items()}
    return found


@pytest.mark.parametrize("make", [luma, turbo, mini])
def test_planned_steps_are_those_one_by_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = train(make)
    monkeypatch.setattr(NATIVE, "plan", lambda *_: None)
    for name, value in train(make).items():
        assert value.dtype == planned[name].dtype
        same = torch.equal(value, planned[name])
        assert same or torch.equal(value.isnan(), planned[name].isnan()), name
        assert torch.equal(value.nan_to_num(7.0), planned[name].nan_to_num(7.0)), name


def test_a_step_is_one_call_and_describes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, described = [], []
    steps, describe_step = NativeLibrary.steps, plan.describe_step

    def counted(library: NativeLibrary, array: Any, *more: Any) -> list[int]:
        calls.append(len(array))
        return steps(library, array, *more)

    def seen(*arguments: Any) -> Any:
        described.append(arguments)
        return describe_step(*arguments)

    monkeypatch.setattr(NativeLibrary, "steps", counted)
    monkeypatch.setattr(plan, "describe_step", seen)
    params = parameters()
    optimizer = turbo(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert calls == [len(params)] * 3
    assert len(described) == len(params)
    assert all(int(optimizer.state[param]["step"]) == 3 for param in params)


def test_autograd_sees_that_parameters_changed() -> None:
    params = parameters()
    optimizer = turbo(params)
    for _ in range(2):
        x = torch.ones((), requires_grad=True)
        loss = (params[0] * x).sum()
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
