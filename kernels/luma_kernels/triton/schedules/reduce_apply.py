"""The LAMB step as kernels: moments and norms, a small reduction, then parameters.

`runtime/tables.py` says where everything is; numbers of LAMB's own stand in the last columns of a
row. Two buffers go from the first pass to the later ones: ``sums``, int64
``[tensors, 2, DIGITS]``, the sums of squares of the parameter and of the update as in `exact.py`,
and ``skipped``, uint8 ``[programs, TILES * TILE_BLOCKS]``, 1 for blocks that were left untouched.
Between the passes the sums of parts of a parameter may be added up.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import coarse, load, store, tensor_pointers
from luma_kernels.triton.rules.elementwise import adamw_moments
from luma_kernels.triton.runtime.exact import (
    DIGITS,
    add_squares,
    finite_squares,
    load_total,
    no_digits,
    store_digits,
)
from luma_kernels.triton.runtime.fastmath import reciprocal, sqrt
from luma_kernels.triton.runtime.noise import random_bits
from luma_kernels.triton.runtime.tables import (
    EXTRA_OPTION,
    INVERSE_CORRECTION,
    LIMIT,
    LR,
    NUMEL,
    ROW,
    WEIGHT_DECAY,
    bounded,
    is_skipped,
    number_in_tensor,
    program_of,
    row_float,
    row_numbers,
    store_float,
)
from luma_kernels.triton.schedules.one_pass import new_moments
from luma_kernels.triton.schedules.tile import (
    LARGEST_SECOND,
    count_nonfinite,
    decode_moments,
    element_indices,
    encode_moments,
    fit_moments,
    lane_numbers,
    load_both_scales,
    load_moments,
    noise_of,
    round_parameter,
    store_both_scales,
    store_moments,
    walk_of,
    writes_of,
)

ADAPT = tl.constexpr(1)
TRUST_CLIP = tl.constexpr(2)
RATE = EXTRA_OPTION
"""The column of a row where `ratio_kernel` puts what the update is multiplied by."""


class LambNumbers(NamedTuple):
    """What a row has of LAMB's own; `rate` is what `ratio_kernel` wrote."""

    inverse_correction: Any
    weight_decay: Any
    rate: Any
    limit: Any


@triton.jit
def _update(
    param, m, v, numbers, own, COARSE: tl.constexpr, SKIP: tl.constexpr, FAST: tl.constexpr
):
    """Return the update before the ratio: `LAMBRule.update`."""
    denominator = tl.fma(sqrt(v, FAST), numbers.root_factor, numbers.eps)
    if COARSE:
        update = bounded(m * reciprocal(denominator, FAST), own.limit, SKIP)
        return tl.fma(update, own.inverse_correction, own.weight_decay * param)
    return tl.fma(
        m, own.inverse_correction * reciprocal(denominator, FAST), own.weight_decay * param
    )


@triton.jit
def step_moments(
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

    Arguments are those of `one_pass.py`'s `_step_tile`; ``skipped`` points to the tile's flags,
    ``[blocks, lanes]``.
    """
    grad = load(pointers.grad + start + element, mask, MASKED)
    raw_m, raw_v = load_moments(pointers, start, element, group, mask, MASKED, M, V, "")
    scales = load_both_scales(pointers, block, M, V)
    m, v = decode_moments(raw_m, raw_v, scales, M, V)
    m, v, _ = new_moments(grad, m, v, numbers, adamw_moments, FACTOR)
    fitted = fit_moments(m, v, scales, maximum, block, WHOLE, SKIP, FAST, M, V)
    keep = fitted.keep
    bits = noise_of(low, high, numbers, mask, MASKED)
    coded_m, coded_v = encode_moments(m, v, fitted, bits, FAST, M, V)
    writes = writes_of(keep, block, leader, mask, MASKED, SKIP)
    store_moments(pointers, start, element, group, coded_m, coded_v, writes, MASKED or SKIP, M, V)
    if not WHOLE:
        bad = leader & (keep == 0)
        count_nonfinite(pointers, bad, block)
        if SKIP:
            tl.store(skipped, bad.to(tl.uint8), mask=leader)
        store_both_scales(pointers, block, fitted.scales, writes, M, V)

    param = load(pointers.param + start + element, mask, MASKED).to(tl.float32)
    m, v = decode_moments(coded_m, coded_v, fitted.scales, M, V)
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
    """Last pass over one tile; arguments are those of `step_moments`, and results mean nothing."""
    param_at = pointers.param + start + element
    param = load(param_at, mask, MASKED).to(tl.float32)
    scales = load_both_scales(pointers, block, M, V)
    raw_m, raw_v = load_moments(pointers, start, element, group, mask, MASKED, M, V, "")
    m, v = decode_moments(raw_m, raw_v, scales, M, V)
    update = _update(param, m, v, numbers, own, coarse(M) or coarse(V), SKIP, FAST)
    param = tl.fma(update, own.rate, param)
    bits = random_bits(low, high, numbers.low_key, numbers.high_key)
    stored = round_parameter(param, bits, P, ROUND)
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

    ``STEP_TILE`` is `step_moments`, or with ``LAST`` `step_parameter`.
    """
    program = program_of(table, rows, owner)
    row = program.row
    maximum = maxima + program.tensor * 2
    if HAS_SCALER:
        if is_skipped(row):
            return
    numel = tl.load(program.entry + NUMEL)
    pointers = tensor_pointers(program.entry, P, G, ALIGNED, M, V)
    numbers = row_numbers(row)
    own = LambNumbers(
        row_float(row, INVERSE_CORRECTION),
        row_float(row, WEIGHT_DECAY),
        row_float(row, RATE),
        row_float(row, LIMIT),
    )
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    LANES: tl.constexpr = BLOCK // LANE
    first_tile = number_in_tensor(program) * TILES
    flags = skipped + program.pid.to(tl.int64) * (TILES * TILE_BLOCKS) - first_tile * TILE_BLOCKS
    walk = walk_of(program.entry, numel, RAGGED, BLOCK)
    last_tile = first_tile
    param_sum = no_digits(TILE_BLOCKS, FLAT)
    update_sum = no_digits(TILE_BLOCKS, FLAT)
    if not RAGGED:
        last_tile = tl.minimum(first_tile + TILES, numel // TILE)
        element, block, leader = element_indices(row, BLOCK, TILE_BLOCKS, LANE)
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
    element, block, leader = element_indices(row, BLOCK, 1, LANE)
    group = lane_numbers(row, BLOCK, 1, LANE)
    param_sum = tl.sum(param_sum, axis=0)[None, :]
    update_sum = tl.sum(update_sum, axis=0)[None, :]
    last_block = tl.minimum((first_tile + TILES) * TILE_BLOCKS, walk.blocks)
    for index in range(last_tile * TILE_BLOCKS, last_block):
        inside = (index % walk.per_row) * BLOCK
        start = index // walk.per_row * walk.cols + inside
        a, b = STEP_TILE(
            pointers, numbers, own, maximum, flags + index + block, start, element,
            tl.zeros_like(block) if WHOLE else index + block,
            index * LANES + group, leader, inside + element < walk.cols,
            (start + element).to(tl.uint32), ((start + element) >> 32).to(tl.uint32),
            True, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST, FLAT,
        )  # fmt: skip
        if not LAST:
            param_sum = add_squares(param_sum, a, FLAT)
            update_sum = add_squares(update_sum, b, FLAT)
    if not LAST:
        at = sums + (program.tensor - first_tensor).to(tl.int64) * (2 * DIGITS)
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
