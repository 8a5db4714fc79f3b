"""What the suites try codecs, rules and backends on: odd shapes, values, noise, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from luma_core import rounding

SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (1,),
    (127,),
    (129,),
    (3, 0),
    (0, 64),
    (5, 3),
    (7, 130),
    (64, 2, 33),
    (2, 1),
)
"""Empty, flat and odd ones, and rows of one block and a part."""


def noise(shape: tuple[int, ...]) -> Tensor:
    """Return 16 random bits for each element, int32 of ``shape``."""
    bits = rounding.random_bits(rounding.step_keys(99, 1), 0, torch.Size(shape).numel())
    return rounding.first_draw(bits).view(shape)


def magnitudes(shape: tuple[int, ...], *, spread: float = 1.0, seed: int = 5) -> Tensor:
    """Return float32 values of both signs around 1e-3, spread by ``e**spread``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cpu") * 1e-3
    return x * torch.exp(spread * torch.randn(shape, generator=generator, device="cpu"))


def positive_numbers() -> Tensor:
    """Return what float32 holds above 0, float32 ``[rows, 128]``.

    Blocks hold like numbers, random ones, and each number beside a huge one and a tiny one.
    """
    exponents = torch.arange(-149, 128, device="cpu").double()
    alike = torch.exp2(exponents)[:, None].expand(-1, 128)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.exp2(torch.rand(100, 128, generator=generator, device="cpu").double() * 276 - 149)
    beside = alike.clone()
    beside[:, 7] = 1e38
    tiny = torch.full((277, 128), 2.0**-149, dtype=torch.float64, device="cpu")
    tiny[:, 3] = torch.exp2(exponents)
    return torch.cat([alike, mixed, beside, tiny]).float()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill memory that ``torch.empty`` returns, so that an element which nobody writes is seen."""
    original = torch.empty

    def poisoned(*sizes: object, **options: object) -> Tensor:
        tensor: Tensor = original(*sizes, **options)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield
