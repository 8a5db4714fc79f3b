"""Exact sums of squares: see `luma_core.rules.norms`."""

from __future__ import annotations

import torch
from torch import Tensor

from luma_core.codecs import BlockGrid
from luma_core.rules.norms import DIGITS
from luma_kernels.cpu.coding import DTYPES, is_plain, thread_count
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.structs import Squares


def square_digits(
    x: Tensor, *, threads: int | None = None, instruction_set: str | None = None
) -> Tensor | None:
    """Return the sum of a whole tensor's squares that are finite, as the eager code does.

    Args:
        x: float tensor of any shape.
        threads: number of threads; torch's by default.
        instruction_set: one of the library's; the fastest by default.

    Returns:
        int64 ``[DIGITS]``, to be read by `luma_core.rules.norms.total`; ``None`` where the
        library does not support the tensor. Carries between digits may differ from the eager
        code's; the number is the same.

    Raises:
        BackendUnavailableError: there is no library.
    """
    if x.dtype not in DTYPES or not is_plain(x) or not x.is_contiguous():
        return None
    grid = BlockGrid.of(x.shape, None)
    squares = Squares(address(x), grid.rows, grid.cols, DTYPES[x.dtype], grid.flat)
    digits = torch.zeros(DIGITS, dtype=torch.int64, device="cpu")
    if x.numel():
        count = thread_count(x.numel(), threads)
        native_library().square_digits(squares, digits, count, instruction_set)
    return digits
