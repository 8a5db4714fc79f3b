"""Optimizers of a few parameters, and what tests of loading compare."""

from typing import Any

import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.optim.base import CompressedOptimizer

Optimizer = type[CompressedOptimizer]
Sizes = dict[str, tuple[int, ...]]

SIZES: Sizes = {"a.weight": (40, 64), "a.bias": (40,), "b.weight": (8, 40), "b.bias": (8,)}
OPTIMIZERS = [LUMA, TurboAdam, LAMB, AdamMini]


def parameters(sizes: Sizes = SIZES, prefix: str = "") -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (prefix + name, nn.Parameter(torch.randn(size, generator=generator)))
        for name, size in sizes.items()
    ]


def unnamed(sizes: Sizes = SIZES) -> list[nn.Parameter]:
    return [param for _, param in parameters(sizes)]


def take_steps(optimizer: torch.optim.Optimizer, steps: int = 2, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def stepped(kind: Any, params: Any, **options: Any) -> Any:
    optimizer = kind(params, **options)
    take_steps(optimizer)
    return optimizer


def assert_same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() != set()
    assert all(torch.equal(a[key], b[key]) for key in a)


def by_name(optimizer: CompressedOptimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: optimizer.state[param] for name, param, _ in optimizer.parameters_by_name()}


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [round(float(group["lr"]), 6) for group in optimizer.param_groups]
