"""The norm of all gradients as a kernel: see `exact.py` for its sums."""

import triton
import triton.language as tl

from luma_kernels.triton.runtime.exact import add_squares, finite_squares, no_digits, store_digits
from luma_kernels.triton.runtime.tables import (
    GRAD,
    NUMEL,
    number_in_tensor,
    pointer_of,
    program_of,
)
from luma_kernels.triton.schedules.tile import element_indices


@triton.jit
def gradient_kernel(
    table,
    rows,
    owner,
    digits,
    G: tl.constexpr,
    ALIGNED: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    LANE: tl.constexpr,
):
    """Add the finite squares of gradients, as they are, to ``digits``, int64 ``[DIGITS]``.

    ``FLAT`` holds of tensors with rows too if blocks do not fill those.
    """
    program = program_of(table, rows, owner)
    numel = tl.load(program.entry + NUMEL)
    grads = pointer_of(program.entry, GRAD, G, ALIGNED)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    element, _, _ = element_indices(program.row, BLOCK, TILE_BLOCKS, LANE)
    total = no_digits(TILE_BLOCKS, FLAT)
    first_tile = number_in_tensor(program) * TILES
    last_full = tl.minimum(first_tile + TILES, numel // TILE)
    for tile in range(first_tile, last_full):
        start = tl.multiple_of(tile * TILE, TILE)
        grad = tl.load(grads + start + element)
        total = add_squares(total, finite_squares(grad.to(tl.float32), 0, False, FLAT), FLAT)
    last_tile = tl.minimum(first_tile + TILES, tl.cdiv(numel, TILE))
    for tile in range(tl.maximum(first_tile, last_full), last_tile):
        start = tile * TILE
        grad = tl.load(grads + start + element, mask=start + element < numel, other=0)
        total = add_squares(total, finite_squares(grad.to(tl.float32), 0, False, FLAT), FLAT)
    store_digits(digits, total)
