"""The norm of all gradients as a kernel: each program adds up its tiles in a fixed order."""

import triton
import triton.language as tl

from luma_kernels.triton.tables import FIRST_PROGRAM, GRAD, NUMEL, WIDTH, pointer_of


@triton.jit
def gradient_kernel(
    table,
    owner,
    sums,
    G: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add up the finite squares of gradients, as they are, by program: float32 ``[programs]``."""
    pid = tl.program_id(0)
    entry = table + tl.load(owner + pid).to(tl.int64) * WIDTH
    numel = tl.load(entry + NUMEL)
    grads = pointer_of(entry, GRAD, G, ALIGNED)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    element = tl.arange(0, TILE)
    total = tl.zeros((TILE,), tl.float32)
    first_tile = (pid.to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * TILES
    for tile in range(first_tile, first_tile + TILES):
        start = tl.multiple_of(tile * TILE, TILE)
        grad = tl.load(grads + start + element, mask=start + element < numel, other=0)
        squares = grad.to(tl.float32) * grad.to(tl.float32)
        total += tl.where(squares < float("inf"), squares, 0.0)
    tl.store(sums + pid, tl.sum(total, axis=0))
