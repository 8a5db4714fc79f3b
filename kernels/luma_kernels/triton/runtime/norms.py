"""The norm of all gradients as a kernel: see `exact.py` for its sums."""

import triton
import triton.language as tl

from luma_kernels.triton.runtime.exact import add_squares, finite_squares, no_digits, store_digits
from luma_kernels.triton.runtime.tables import FIRST_PROGRAM, GRAD, NUMEL, ROW, WIDTH, pointer_of
from luma_kernels.triton.schedules.one_pass import _indices


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
    pid = tl.program_id(0)
    tensor = tl.load(owner + pid).to(tl.int64)
    entry = table + tensor * WIDTH
    numel = tl.load(entry + NUMEL)
    grads = pointer_of(entry, GRAD, G, ALIGNED)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    element, _, _ = _indices(rows + tensor * ROW, BLOCK, TILE_BLOCKS, LANE)
    total = no_digits(TILE_BLOCKS, FLAT)
    first_tile = (pid.to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * TILES
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
