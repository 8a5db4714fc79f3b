"""Sums of squares in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor


def square_sum(x: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the sum of the squares of a blocked tile.

    Squares are float32 and sums float64. Squares that are not finite do not count: one of them
    would spoil the norm, and with it every element that is scaled by it. Blocks are summed first,
    so the result does not depend on the number of threads.

    Args:
        x: float32 ``[rows, blocks, block_size]``.
        keep: bool, broadcast to ``x``: false where elements do not count either.

    Returns:
        float64 0-d tensor.
    """
    squares = x.square()
    counts = torch.isfinite(squares) if keep is None else torch.isfinite(squares) & keep
    squares = torch.where(counts, squares, 0.0)
    return squares.sum(dim=-1, dtype=torch.float64).sum()
