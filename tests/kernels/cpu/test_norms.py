"""Exact sums of squares of the native library are those of the eager code, as numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from luma_core import LAMB
from luma_core.codecs import BlockGrid
from luma_core.optim.step import clipping
from luma_core.rules.norms import DIGITS, square_digits, total
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

SHAPES = [(), (1,), (129,), (5000,), (40, 3), (3, 128), (5, 200), (7, 31), (2, 3000), (4, 3, 5, 7)]


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers whose squares go from subnormal ones to the largest, and beyond."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.exp2(torch.randint(-80, 66, shape, generator=generator).float())
    return (torch.randn(shape, generator=generator) * sizes).to(dtype)


def eager(x: Tensor) -> Tensor:
    digits = torch.zeros(DIGITS, dtype=torch.int64)
    grid = BlockGrid.of(x.shape, 128)
    for tile in grid.tiles():
        digits += square_digits(tile.read(x).float(), flat=grid.flat)
    return digits


def whole(digits: Tensor | None) -> int:
    assert digits is not None
    return sum(digit << (32 * place) for place, digit in enumerate(digits.tolist()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_are_equal_as_integers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = values(shape, dtype)
    expected = whole(eager(x))
    for name in native_library().instruction_sets:
        assert whole(cpu.square_digits(x, instruction_set=name)) == expected, name


def test_a_flat_sum_is_exact() -> None:
    x = values((3000,))
    squares = [Fraction(square) for square in x.square().tolist() if math.isfinite(square)]
    found = cpu.square_digits(x)
    assert Fraction(whole(found)) / 2**149 == sum(squares)
    assert found is not None
    assert float(total(found)) == float(sum(squares))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_squares_that_are_not_finite_do_not_count(value: float) -> None:
    for shape in ((500,), (5, 100)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        x.view(-1)[77] = 0.0
        without = whole(cpu.square_digits(x))
        x.view(-1)[77] = value
        assert whole(cpu.square_digits(x)) == without == whole(eager(x))


def test_threads_give_equal_sums() -> None:
    for shape in ((300_000,), (300, 1000)):
        x = values(shape)
        assert len({whole(cpu.square_digits(x, threads=threads)) for threads in (1, 2, 5)}) == 1


def test_what_it_cannot_take_is_left_to_the_eager_code() -> None:
    x = values((6, 200))
    assert cpu.square_digits(x.double()) is None
    assert cpu.square_digits(x.t()) is None
    assert whole(clipping.gradient_square_digits(x.t())) == whole(eager(x.t()))


def test_lamb_bounds_gradients_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(clipping, "square_digits", refuse)
    param = torch.nn.Parameter(torch.ones(1000))
    optimizer = LAMB([param], seed=0, max_grad_norm=1.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert float(param.detach().max()) < 1
