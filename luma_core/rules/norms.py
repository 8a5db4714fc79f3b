"""Sums of squares that do not depend on the order of additions, and so not on who adds what.

Squares are float32. Those of a block are added in float64, halves to halves, or each stands alone
in flat tensors, which may be cut anywhere. These numbers, all multiples of 2**-149, are cut into
digits of 32 bits, and digits of equal rank are added as integers: exactly, in any order, on any
number of devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIGITS = 10
"""Enough for 2**31 times the largest float32."""

_DIGIT_BITS = 32
_LOWEST_EXPONENT = -149
_BLOCK = 128


def square_digits(x: Tensor, keep: Tensor | None = None, *, flat: bool) -> Tensor:
    """Return the sum of the squares of a blocked tile.

    Squares that are not finite do not count: one of them would spoil the norm, and with it every
    element that is scaled by it.

    Args:
        x: float32 ``[rows, blocks, block_size]``.
        keep: bool, broadcast to ``x``: false where elements do not count either.
        flat: whether the tensor may be cut within blocks.

    Returns:
        int64 ``[DIGITS]``, to be added to those of other tiles; see `total`.
    """
    squares = x.square()
    counts = torch.isfinite(squares) if keep is None else torch.isfinite(squares) & keep
    squares = torch.where(counts, squares, 0.0)
    if flat:
        return _digits(squares.double())
    length = squares.shape[-1]
    width = min(_BLOCK, 1 << max(length - 1, 0).bit_length())
    sums = torch.nn.functional.pad(squares, (0, -length % width)).double()
    sums = sums.unflatten(-1, (-1, width))
    while width > 1:
        width //= 2
        sums = sums[..., :width] + sums[..., width:]
    return _digits(sums)


def _digits(values: Tensor) -> Tensor:
    rest = values * 2.0**-_LOWEST_EXPONENT
    digits = torch.zeros(DIGITS, dtype=torch.int64, device=values.device)
    for place in reversed(range(DIGITS)):
        unit = 2.0 ** (place * _DIGIT_BITS)
        digit = (rest / unit).floor_()
        rest = rest - digit * unit
        digits[place] = digit.sum().to(torch.int64)
    return digits


def total(digits: Tensor) -> Tensor:
    """Return the numbers of sums of digits, float64, without the last dimension.

    On the CPU they are rounded once, so that carries between digits do not matter.

    Args:
        digits: int64 ``[..., DIGITS]``.
    """
    if digits.device.type == "cpu":
        sums = [_whole(row) for row in digits.reshape(-1, digits.shape[-1]).tolist()]
        return torch.tensor(sums, dtype=torch.float64, device="cpu").view(digits.shape[:-1])
    value = torch.zeros(digits.shape[:-1], dtype=torch.float64, device=digits.device)
    for place in range(DIGITS):
        unit = 2.0 ** (place * _DIGIT_BITS + _LOWEST_EXPONENT)
        value = value + digits[..., place].double() * unit
    return value


def _whole(digits: list[int]) -> float:
    value = sum(digit << (place * _DIGIT_BITS) for place, digit in enumerate(digits))
    return math.ldexp(value, _LOWEST_EXPONENT)
