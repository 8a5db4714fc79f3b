"""The LAMB step as kernels: moments and norms, a small reduction, then parameters.

`tables.py` says where everything is; numbers of LAMB's own stand in the last columns of a row. Two
buffers go from the first pass to the later ones: ``sums``, int64 ``[tensors, 2, DIGITS]``, the sums
of squares of the parameter and of the update as in `exact.py`, and ``skipped``, uint8
``[programs, TILES * TILE_BLOCKS]``, 1 for blocks that were left untouched. Between the passes the
sums of parts of a parameter may be added up.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import (
    coarse,
    decode,
    encode,
    fit,
    load,
    load_codes,
    load_scales,
    moment_pointers,
    store,
    store_codes,
    store_scales,
)
from luma_kernels.triton.runtime.exact import (
    DIGITS,
    add_squares,
    finite_squares,
    load_total,
    no_digits,
    store_digits,
)
from luma_kernels.triton.runtime.fastmath import reciprocal, sqrt
from luma_kernels.triton.runtime.noise import random_bits, third_draw, to_bfloat16
from luma_kernels.triton.runtime.tables import (
    BLOCKS_PER_ROW,
    COLS,
    EXTRA_OPTION,
    FIRST_PROGRAM,
    INVERSE_CORRECTION,
    LIMIT,
    LR,
    NUMEL,
    ROW,
    WEIGHT_DECAY,
    WIDTH,
    bounded,
    row_float,
    row_numbers,
    store_float,
)
from luma_kernels.triton.schedules.one_pass import (
    LARGEST_SECOND,
    _indices,
    _new_moments,
    lane_numbers,
)

ADAPT = tl.constexpr(1)
TRUST_CLIP = tl.constexpr(2)
RATE = EXTRA_OPTION
"""The column of a row where `ratio_kernel` puts what the update is multiplied by."""


@triton.jit
def _update(
    param, m, v, numbers, own, COARSE: tl.constexpr, SKIP: tl.constexpr, FAST: tl.constexpr
):
    """Return the update before the ratio: `LAMBRule.update`."""
    denominator = tl.fma(sqrt(v, FAST), numbers[4], numbers[5])
    if COARSE:
        update = bounded(m * reciprocal(denominator, FAST), own[3], SKIP)
        return tl.fma(update, own[0], own[1] * param)
    return tl.fma(m, own[0] * reciprocal(denominator, FAST), own[1] * param)


@triton.jit
def store_moments(
    pointers,
    numbers,
    own,
    maximum,
    skipped,
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
    FLAT: tl.constexpr,
):
    """First pass over one tile; return the finite squares of parameter and update.

    Arguments are those of AdamW's `_step_tile`; ``skipped`` points to the tile's flags,
    ``[blocks, lanes]``.
    """
    grad = load(pointers[1] + start + element, mask, MASKED)
    raw_m = load_codes(pointers[2], start + element, group, mask, MASKED, M)
    raw_v = load_codes(pointers[3], start + element, group, mask, MASKED, V)
    scale_m, window_m = load_scales(pointers[4], pointers[4], block, M)
    scale_v, window_v = load_scales(pointers[5], pointers[7], block, V)
    m = decode(raw_m, scale_m[:, :, None], window_m[:, :, None], M)
    v = decode(raw_v, scale_v[:, :, None], window_v[:, :, None], V)
    m, v = _new_moments(grad, m, v, numbers, FACTOR)

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
        bits = tl.where(mask, bits, 0)
    coded_m = encode(m, root, scale_m[:, :, None], window_m[:, :, None], bits, FAST, M)
    coded_v = encode(v, root, scale_v[:, :, None], window_v[:, :, None], bits, FAST, V)
    write_block = leader
    write_lane = block >= 0
    write = mask
    if SKIP:
        write_block = write_block & keep
        write_lane = keep | (block < 0)
        write = keep[:, :, None]
        if MASKED:
            write = write & mask
    store_codes(pointers[2], start + element, group, coded_m, write_lane, write, MASKED or SKIP, M)
    store_codes(pointers[3], start + element, group, coded_v, write_lane, write, MASKED or SKIP, V)
    if not WHOLE:
        bad = leader & (v_bits > LARGEST_SECOND)
        one = tl.zeros_like(block).to(tl.int64) + 1
        tl.atomic_add(pointers[6] + tl.zeros_like(block), one, mask=bad, sem="relaxed")
        if SKIP:
            tl.store(skipped, bad.to(tl.uint8), mask=leader)
        store_scales(pointers[4], pointers[4], block, scale_m, window_m, write_block, M)
        store_scales(pointers[5], pointers[7], block, scale_v, window_v, write_block, V)

    param = load(pointers[0] + start + element, mask, MASKED).to(tl.float32)
    m = decode(coded_m, scale_m[:, :, None], window_m[:, :, None], M)
    v = decode(coded_v, scale_v[:, :, None], window_v[:, :, None], V)
    update = _update(param, m, v, numbers, own, coarse(M) or coarse(V), SKIP, FAST)
    return finite_squares(param, keep, SKIP, FLAT), finite_squares(update, keep, SKIP, FLAT)


@triton.jit
def step_parameter(
    pointers,
    numbers,
    own,
    maximum,
    skipped,
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
    FLAT: tl.constexpr,
):
    """Last pass over one tile; arguments are those of `store_moments`, and results mean nothing."""
    param_at = pointers[0] + start + element
    param = load(param_at, mask, MASKED).to(tl.float32)
    scale_m, window_m = load_scales(pointers[4], pointers[4], block, M)
    scale_v, window_v = load_scales(pointers[5], pointers[7], block, V)
    raw_m = load_codes(pointers[2], start + element, group, mask, MASKED, M)
    raw_v = load_codes(pointers[3], start + element, group, mask, MASKED, V)
    m = decode(raw_m, scale_m[:, :, None], window_m[:, :, None], M)
    v = decode(raw_v, scale_v[:, :, None], window_v[:, :, None], V)
    update = _update(param, m, v, numbers, own, coarse(M) or coarse(V), SKIP, FAST)
    param = tl.fma(update, own[2], param)
    if tl.bfloat16 == P:
        draw = 0x7FFF + ((param.to(tl.uint32, bitcast=True) >> 16) & 1)
        if ROUND:
            draw = third_draw(random_bits(low, high, numbers[8], numbers[9]))
        stored = to_bfloat16(param, draw)
    else:
        stored = param.to(P)
    write = mask
    if SKIP:
        if WHOLE:
            keep = tl.load(maximum + 1).to(tl.uint32) + tl.zeros_like(block).to(tl.uint32)
            keep = keep <= LARGEST_SECOND
        else:
            keep = tl.load(skipped) == 0
        write = keep[:, :, None]
        if MASKED:
            write = write & mask
    store(param_at, stored, write, MASKED or SKIP)
    return param, param


@triton.jit(do_not_specialize=["first_tensor"])
def lamb_kernel(
    table,
    rows,
    owner,
    maxima,
    sums,
    skipped,
    first_tensor,
    STEP_TILE: tl.constexpr,
    LAST: tl.constexpr,
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
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    LANE: tl.constexpr,
):
    """Take the first pass, or with ``LAST`` the last, over ``TILES`` tiles of one tensor.

    ``STEP_TILE`` is `store_moments`, or with ``LAST`` `step_parameter`.
    """
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
    own = (
        row_float(row, INVERSE_CORRECTION),
        row_float(row, WEIGHT_DECAY),
        row_float(row, RATE),
        row_float(row, LIMIT),
    )
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    LANES: tl.constexpr = BLOCK // LANE
    first_tile = (pid.to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * TILES
    flags = skipped + pid.to(tl.int64) * (TILES * TILE_BLOCKS) - first_tile * TILE_BLOCKS
    cols = numel
    per_row = tl.cdiv(numel, BLOCK)
    blocks = per_row
    last_tile = first_tile
    param_sum = no_digits(TILE_BLOCKS, FLAT)
    update_sum = no_digits(TILE_BLOCKS, FLAT)
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
            a, b = STEP_TILE(
                pointers, numbers, own, maximum, flags + tile * TILE_BLOCKS + block, start, element,
                tl.zeros_like(block) if WHOLE else tile * TILE_BLOCKS + block,
                tile * (TILE_BLOCKS * LANES) + group, leader, None,
                start.to(tl.uint32) + element.to(tl.uint32), (start >> 32).to(tl.uint32),
                False, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST, FLAT,
            )  # fmt: skip
            if not LAST:
                param_sum = add_squares(param_sum, a, FLAT)
                update_sum = add_squares(update_sum, b, FLAT)
        last_tile = tl.maximum(last_tile, first_tile)
    # What is left is stepped block by block: ends of tensors, and of rows that blocks do not fit.
    element, block, leader = _indices(row, BLOCK, 1, LANE)
    group = lane_numbers(row, BLOCK, 1, LANE)
    param_sum = tl.sum(param_sum, axis=0)[None, :]
    update_sum = tl.sum(update_sum, axis=0)[None, :]
    last_block = tl.minimum((first_tile + TILES) * TILE_BLOCKS, blocks)
    for index in range(last_tile * TILE_BLOCKS, last_block):
        inside = (index % per_row) * BLOCK
        start = index // per_row * cols + inside
        a, b = STEP_TILE(
            pointers, numbers, own, maximum, flags + index + block, start, element,
            tl.zeros_like(block) if WHOLE else index + block,
            index * LANES + group, leader, inside + element < cols,
            (start + element).to(tl.uint32), ((start + element) >> 32).to(tl.uint32),
            True, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST, FLAT,
        )  # fmt: skip
        if not LAST:
            param_sum = add_squares(param_sum, a, FLAT)
            update_sum = add_squares(update_sum, b, FLAT)
    if not LAST:
        at = sums + (tensor - first_tensor).to(tl.int64) * (2 * DIGITS)
        store_digits(at, param_sum)
        store_digits(at + DIGITS, update_sum)


@triton.jit(do_not_specialize=["first_tensor"])
def ratio_kernel(rows, sums, first_tensor):
    """Write what the update of one tensor is multiplied by."""
    tensor = tl.program_id(0)
    row = rows + (first_tensor + tensor) * ROW
    at = sums + tensor.to(tl.int64) * (2 * DIGITS)
    param_norm = tl.sqrt(load_total(at))
    update_norm = tl.sqrt(load_total(at + DIGITS))
    options = row_float(row, EXTRA_OPTION).to(tl.int32)
    use = ((options & ADAPT) != 0) & (param_norm > 0) & (update_norm > 0)
    ratio = tl.where(use, param_norm / tl.where(use, update_norm, 1.0), 1.0)
    ratio = tl.where((options & TRUST_CLIP) != 0, tl.minimum(ratio, 1.0), ratio)
    store_float(row + RATE, -row_float(row, LR) * ratio, None)
