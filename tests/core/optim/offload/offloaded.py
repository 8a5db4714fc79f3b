"""Runs of offloaded optimizers beside resident ones, shared by the tests of offloading."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from luma_core import LAMB, LUMA, Adam, AdamMini, Lion, TurboAdam
from luma_core.optim import CompressedOptimizer

Build = Callable[..., CompressedOptimizer]

OPTIMIZERS: dict[str, Build] = {
    "luma": LUMA,
    "luma-whole": partial(LUMA, block_size=None),
    "lion": Lion,
    "adam-coupled": partial(Adam, weight_decay=0.1),
    "turboadam": TurboAdam,
    "turboadam-8bit": partial(TurboAdam, preset="8bit"),
    "turboadam-costate": partial(TurboAdam, m_codec="costate", error_feedback=True),
    "adam-mini": AdamMini,
    "lamb": LAMB,
    "lamb-clip": partial(LAMB, max_grad_norm=1.0),
}
MODES = ("host", "disk", "cpu-step")

BUFFER_BYTES = 1 << 20

SHAPES = [
    (512, 160),  # cut by rows
    (768,),
    (40, 33, 3),
    (70000,),  # flat, cut within its one row
    (3, 300, 100),  # cut within rows, which no block divides
    (4, 50000),
    (33,),
    (),
]


def named_parameters(dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (f"mlp.{index}.weight", nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
        for index, shape in enumerate(SHAPES)
    ]


def give_gradients(named: list[tuple[str, nn.Parameter]], step: int) -> None:
    """Give gradients of a step; the third parameter has none in the fourth step."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, (_, param) in enumerate(named):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = None if (index, step) == (2, 3) else grad


def take_steps(
    named: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, steps: range
) -> None:
    for step in steps:
        give_gradients(named, step)
        optimizer.step()


def bits(named: list[tuple[str, nn.Parameter]], optimizer: CompressedOptimizer) -> dict[str, Any]:
    """Return copies of all parameters and of all state, by name."""
    found: dict[str, Any] = {name: param.detach().clone() for name, param in named}
    for index, entry in optimizer.state_dict()["state"].items():
        found |= {f"{index} {key}": value.clone() for key, value in entry.items()}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = [key for key in found if not torch.equal(found[key], expected[key])]
    assert not different


@cache
def resident(
    kind: str, steps: int, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Any]:
    """Return the bits of a run whose state lies beside the parameters."""
    named = named_parameters(dtype)
    optimizer = OPTIMIZERS[kind](named, lr=1e-2, seed=3, **options)
    take_steps(named, optimizer, range(steps))
    return bits(named, optimizer)
