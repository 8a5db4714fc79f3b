"""The AdamW step as kernels: one program per run of tiles of one tensor, all tensors in one launch.

`tables.py` says where everything is, and `interface.py` what the codecs ``M`` and ``V`` are.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import (
    coarse,
    codes_pointer,
    decode,
    encode,
    fit,
    load,
    load_codes,
    load_scales,
    moment_pointers,
    packed,
    scaled,
    store,
    store_codes,
    store_scales,
)
from luma_kernels.triton.codecs.log_grid import fit_exponent
from luma_kernels.triton.runtime.fastmath import reciprocal, sqrt
from luma_kernels.triton.runtime.noise import random_bits, third_draw, to_bfloat16
from luma_kernels.triton.runtime.tables import (
    BLOCKS_PER_ROW,
    COLS,
    FIRST,
    FIRST_EXPONENT,
    FIRST_PROGRAM,
    GRAD,
    LIMIT,
    NONFINITE,
    NUMEL,
    ROW,
    SECOND,
    SECOND_EXPONENT,
    WIDTH,
    ZERO,
    bounded,
    pointer_of,
    row_float,
    row_numbers,
)

# Bits of 3.39e38. A larger second moment codes to infinity: its block counts as non-finite.
LARGEST_SECOND = tl.constexpr(0x7F7F08F3)
INFINITY = tl.constexpr(0x7F800000)


@triton.constexpr_function
def _cache(M, V, WHOLE):
    """Return how loads use caches.

    Each byte is read once, and L1 is better left out: that takes 0.8% off a step of 16-bit codes,
    but adds 1 to 6% to those with packed codes or one scale per tensor.
    """
    return "" if WHOLE or packed(M) or packed(V) else ".cg"


@triton.jit
def _new_moments(grad, m, v, numbers, FACTOR: tl.constexpr):
    """Return the new moments, float32; ``FACTOR`` says whether gradients are scaled or negated."""
    grad = grad.to(tl.float32)
    if FACTOR:
        grad = grad * numbers[1]
    m = tl.fma(grad - m, numbers[0], m)
    v = tl.fma(grad, grad * numbers[3], v * numbers[2])
    return m, v


@triton.jit
def _indices(row, BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, LANE: tl.constexpr):
    """Return element offsets in a tile and block offsets of its lanes.

    A tile is ``[TILE_BLOCKS, BLOCK // LANE, LANE]`` elements of one warp: a lane owns 16 bytes of
    codes and reads its block's exponent itself. A zero that the compiler does not know hides that
    blocks are neighbours too: it would otherwise give exponents a layout of their own, and shared
    memory to get into it and out of it.
    """
    blocks = tl.arange(0, TILE_BLOCKS)
    lanes = tl.arange(0, BLOCK // LANE)
    inner = tl.arange(0, LANE)
    element = blocks[:, None] * BLOCK + lanes[None, :] * LANE
    element = element[:, :, None] + inner[None, None, :]
    block = (blocks ^ tl.load(row + ZERO))[:, None] + tl.zeros_like(lanes)[None, :]
    return element, block, (lanes == 0)[None, :]


@triton.jit
def lane_numbers(row, BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, LANE: tl.constexpr):
    """Return the numbers of a tile's lanes, ``[TILE_BLOCKS, BLOCK // LANE]``, hidden likewise."""
    blocks = tl.arange(0, TILE_BLOCKS) ^ tl.load(row + ZERO)
    lanes = tl.arange(0, BLOCK // LANE) ^ tl.load(row + ZERO)
    return blocks[:, None] * (BLOCK // LANE) + lanes[None, :]


@triton.jit
def _step_tile(
    pointers,
    numbers,
    limit,
    maximum,
    start,
    element,
    block,
    group,
    leader,
    mask,
    low,
    high,
    MASKED: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    WHOLE: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
    FACTOR: tl.constexpr,
    FAST: tl.constexpr,
):
    """Update one tile.

    ``pointers`` are a tensor's base pointers, ``numbers`` its row and ``limit`` bounds updates
    where codes are packed. ``element`` [blocks, lanes, LANE] are offsets from ``start`` elements;
    ``block`` and ``group`` [blocks, lanes] the numbers of blocks and lanes within the tensor;
    ``low`` and ``high`` the words of the global element index.
    """
    CACHE: tl.constexpr = _cache(M, V, WHOLE)
    param_at = pointers[0] + start + element
    grad = load(pointers[1] + start + element, mask, MASKED, CACHE)
    if grad.dtype == tl.float32 and (packed(M) or packed(V)):
        # Never read. Accesses of 16-bit values give a thread the 8 elements of a word; those of
        # 32-bit values alone would give them to two threads, which then exchange them.
        hint_at = pointers[1].to(tl.pointer_type(tl.int16)) + start + element
        hint = tl.load(hint_at, mask=(block < 0)[:, :, None], other=0).to(tl.int32)
        grad = (grad.to(tl.int32, bitcast=True) | hint).to(tl.float32, bitcast=True)
    old_param = load(param_at, mask, MASKED, CACHE)
    raw_m = load_codes(pointers[2], start + element, group, mask, MASKED, M, CACHE)
    raw_v = load_codes(pointers[3], start + element, group, mask, MASKED, V, CACHE)
    scale_m, window_m = load_scales(pointers[4], pointers[4], block, M)
    scale_v, window_v = load_scales(pointers[5], pointers[7], block, V)

    m = decode(raw_m, scale_m[:, :, None], window_m[:, :, None], M)
    v = decode(raw_v, scale_v[:, :, None], window_v[:, :, None], V)
    m, v = _new_moments(grad, m, v, numbers, FACTOR)
    # Bits of non-negative floats are ordered like the floats, and those of NaN come last; a warp
    # has one instruction for the maximum of integers.
    if WHOLE:
        m_bits = tl.load(maximum).to(tl.uint32) + tl.zeros_like(block).to(tl.uint32)
        v_bits = tl.load(maximum + 1).to(tl.uint32) + tl.zeros_like(block).to(tl.uint32)
    else:
        m_bits = tl.max(tl.max(tl.abs(m).to(tl.uint32, bitcast=True), axis=2), axis=1)[:, None]
        v_bits = tl.max(tl.max(v.to(tl.uint32, bitcast=True), axis=2), axis=1)[:, None]
    keep = v_bits <= LARGEST_SECOND
    root = sqrt(v, FAST)
    scale_m, window_m = fit(m, root, m_bits, scale_m, window_m, keep, SKIP, FAST, M)
    scale_v, window_v = fit(v, root, v_bits, scale_v, window_v, keep, SKIP, FAST, V)

    bits = random_bits(low, high, numbers[8], numbers[9])
    if MASKED:
        # What fills up a block is coded like the rest, without noise.
        bits = tl.where(mask, bits, 0)
    update = m * reciprocal(tl.fma(root, numbers[4], numbers[5]), FAST)
    if coarse(M) or coarse(V):
        update = bounded(update, limit, SKIP)
    param = tl.fma(update, numbers[7], old_param.to(tl.float32) * numbers[6])
    coded_m = encode(m, root, scale_m[:, :, None], window_m[:, :, None], bits, FAST, M)
    coded_v = encode(v, root, scale_v[:, :, None], window_v[:, :, None], bits, FAST, V)
    if tl.bfloat16 == P:
        draw = 0x7FFF + ((param.to(tl.uint32, bitcast=True) >> 16) & 1)
        if ROUND:
            draw = third_draw(bits)
        stored = to_bfloat16(param, draw)
    else:
        stored = param.to(P)

    if not WHOLE:
        tl.atomic_add(
            pointers[6] + tl.zeros_like(block),
            tl.zeros_like(block).to(tl.int64) + 1,
            mask=leader & (v_bits > LARGEST_SECOND),
            sem="relaxed",
        )
    write_block = leader
    write_lane = block >= 0
    write = mask
    if SKIP:
        write_block = write_block & keep
        write_lane = keep | (block < 0)
        write = keep[:, :, None]
        if MASKED:
            write = write & mask
    store(param_at, stored, write, MASKED or SKIP)
    store_codes(pointers[2], start + element, group, coded_m, write_lane, write, MASKED or SKIP, M)
    store_codes(pointers[3], start + element, group, coded_v, write_lane, write, MASKED or SKIP, V)
    if not WHOLE:
        store_scales(pointers[4], pointers[4], block, scale_m, window_m, write_block, M)
        store_scales(pointers[5], pointers[7], block, scale_v, window_v, write_block, V)


@triton.jit
def step_kernel(
    table,
    rows,
    owner,
    maxima,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    WHOLE: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
    FACTOR: tl.constexpr,
    FAST: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    RAGGED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    LANE: tl.constexpr,
):
    """Take the step of ``TILES`` tiles of ``TILE_BLOCKS`` blocks of one tensor."""
    pid = tl.program_id(0)
    tensor = tl.load(owner + pid)
    entry = table + tensor.to(tl.int64) * WIDTH
    row = rows + tensor * ROW
    maximum = maxima + tensor * 2
    if HAS_SCALER:
        if tl.load(row + 10) == 0:
            return
    numel = tl.load(entry + NUMEL)
    pointers = moment_pointers(entry, P, G, ALIGNED, M, V)
    numbers = row_numbers(row)
    limit = row_float(row, LIMIT)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    LANES: tl.constexpr = BLOCK // LANE
    first_tile = (pid.to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * TILES
    cols = numel
    per_row = tl.cdiv(numel, BLOCK)
    blocks = per_row
    last_tile = first_tile
    if RAGGED:
        cols = tl.load(entry + COLS)
        per_row = tl.load(entry + BLOCKS_PER_ROW)
        blocks = numel // cols * per_row
    else:
        last_tile = tl.minimum(first_tile + TILES, numel // TILE)
        element, block, leader = _indices(row, BLOCK, TILE_BLOCKS, LANE)
        group = lane_numbers(row, BLOCK, TILE_BLOCKS, LANE)
        for tile in range(first_tile, last_tile):
            start = tl.multiple_of(tile * TILE, TILE)
            _step_tile(
                pointers, numbers, limit, maximum, start, element,
                tl.zeros_like(block) if WHOLE else tile * TILE_BLOCKS + block,
                tile * (TILE_BLOCKS * LANES) + group, leader, None,
                start.to(tl.uint32) + element.to(tl.uint32), (start >> 32).to(tl.uint32),
                False, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST,
            )  # fmt: skip
        last_tile = tl.maximum(last_tile, first_tile)
    # What is left is stepped block by block: ends of tensors, and of rows that blocks do not fit.
    element, block, leader = _indices(row, BLOCK, 1, LANE)
    group = lane_numbers(row, BLOCK, 1, LANE)
    last_block = tl.minimum((first_tile + TILES) * TILE_BLOCKS, blocks)
    for index in range(last_tile * TILE_BLOCKS, last_block):
        inside = (index % per_row) * BLOCK
        start = index // per_row * cols + inside
        _step_tile(
            pointers, numbers, limit, maximum, start, element,
            tl.zeros_like(block) if WHOLE else index + block,
            index * LANES + group, leader, inside + element < cols,
            (start + element).to(tl.uint32), ((start + element) >> 32).to(tl.uint32),
            True, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST,
        )  # fmt: skip


@triton.jit
def maxima_kernel(
    table,
    rows,
    owner,
    maxima,
    G: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """First pass with one scale per tensor: the largest new moments, as float32 bits."""
    pid = tl.program_id(0)
    tensor = tl.load(owner + pid)
    entry = table + tensor.to(tl.int64) * WIDTH
    row = rows + tensor * ROW
    if HAS_SCALER:
        if tl.load(row + 10) == 0:
            return
    numbers = row_numbers(row)
    numel = tl.load(entry + NUMEL)
    exponent_m = 0
    exponent_v = 0
    if scaled(M):
        exponent_m = tl.load(pointer_of(entry, FIRST_EXPONENT, tl.uint8, False)).to(tl.int32)
    if scaled(V):
        exponent_v = tl.load(pointer_of(entry, SECOND_EXPONENT, tl.uint8, False)).to(tl.int32)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    element = tl.arange(0, TILE)
    largest_m = tl.zeros((TILE,), tl.float32)
    largest_v = tl.zeros((TILE,), tl.uint32)
    first_tile = (pid.to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * TILES
    for tile in range(first_tile, first_tile + TILES):
        start = tl.multiple_of(tile * TILE, TILE)
        mask = start + element < numel
        grad = tl.load(pointer_of(entry, GRAD, G, ALIGNED) + start + element, mask=mask, other=0)
        first = codes_pointer(entry, FIRST, ALIGNED, M) + start + element
        second = codes_pointer(entry, SECOND, ALIGNED, V) + start + element
        m = decode(tl.load(first, mask=mask, other=0), exponent_m, 0, M)
        v = decode(tl.load(second, mask=mask, other=0), exponent_v, 0, V)
        m, v = _new_moments(grad, m, v, numbers, FACTOR)
        largest_m = tl.maximum(largest_m, tl.abs(m))
        largest_v = tl.maximum(largest_v, v.to(tl.uint32, bitcast=True))
    maximum = maxima + tensor * 2
    tl.atomic_max(maximum, tl.max(largest_m, axis=0).to(tl.int32, bitcast=True))
    tl.atomic_max(maximum + 1, tl.minimum(tl.max(largest_v, axis=0), INFINITY).to(tl.int32))


@triton.jit(do_not_specialize=["tensors", "first_tensor"])
def finish_kernel(
    table,
    rows,
    maxima,
    tensors,
    first_tensor,
    M: tl.constexpr,
    SKIP: tl.constexpr,
    LANES: tl.constexpr,
):
    """Last pass with one scale per tensor: store exponents, count tensors left untouched."""
    tensor = first_tensor + tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = tensor < first_tensor + tensors
    entry = table + tensor.to(tl.int64) * WIDTH
    maximum = maxima + tensor * 2
    largest_m = tl.load(maximum, mask=mask, other=0).to(tl.float32, bitcast=True)
    largest_bits = tl.load(maximum + 1, mask=mask, other=0)
    finite = largest_bits <= LARGEST_SECOND
    largest_root = tl.sqrt(largest_bits.to(tl.float32, bitcast=True))
    mask = mask & (tl.load(rows + tensor * ROW + 10, mask=mask, other=0) != 0)
    bad = tl.load(entry + NONFINITE, mask=mask, other=0).to(tl.pointer_type(tl.int64))
    tl.store(bad, tl.load(bad, mask=mask, other=0) + 1, mask=mask & (finite == 0))
    if SKIP:
        mask = mask & finite
    if scaled(M):
        new_m = tl.where(finite, fit_exponent(largest_m, M[2]), 254)
        new_v = tl.where(finite, fit_exponent(largest_root, M[2]), 254)
        first = tl.load(entry + FIRST_EXPONENT, mask=mask, other=0).to(tl.pointer_type(tl.uint8))
        second = tl.load(entry + SECOND_EXPONENT, mask=mask, other=0).to(tl.pointer_type(tl.uint8))
        tl.store(first, new_m.to(tl.uint8), mask=mask)
        tl.store(second, new_v.to(tl.uint8), mask=mask)
