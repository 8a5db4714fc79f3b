"""The step of rules that work element by element: one program per run of tiles of one tensor.

All tensors are in one launch; with one scale per tensor two small passes go before and after it.
`runtime/tables.py` says where everything is. A rule is two device functions:

- ``MOMENTS(grad, m, v, numbers)``: the new moments, and a third value for the update;
- ``UPDATE(m, root, third, numbers, limit, COARSE, SKIP, FAST)``: what is multiplied by the rate and
  added to the decayed parameter; ``root`` is the second moment's and ``COARSE`` says that a codec
  is `luma_core.codecs.Codec.coarse`.

Moments are float32; of a rule with one, ``V`` is ``None`` and ``v`` means nothing.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import (
    coarse,
    codes_pointer,
    decode,
    load,
    packed,
    scaled,
    store,
    tensor_pointers,
)
from luma_kernels.triton.codecs.log_grid import fit_exponent
from luma_kernels.triton.runtime.tables import (
    ACTIVE,
    FIRST,
    FIRST_EXPONENT,
    GRAD,
    LIMIT,
    NONFINITE,
    NUMEL,
    ROW,
    SECOND,
    SECOND_EXPONENT,
    WIDTH,
    is_skipped,
    number_in_tensor,
    pointer_of,
    program_of,
    row_float,
    row_numbers,
)
from luma_kernels.triton.schedules.tile import (
    LARGEST_FLOAT,
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

INFINITY = tl.constexpr(0x7F800000)


@triton.constexpr_function
def _cache(M, V, WHOLE):
    """Return how loads use caches.

    Each byte is read once, and L1 is better left out: that takes 0.8% off a step of 16-bit codes,
    but adds 1 to 6% to those with packed codes or one scale per tensor.
    """
    return "" if WHOLE or packed(M) or packed(V) else ".cg"


@triton.jit
def new_moments(grad, m, v, numbers, MOMENTS: tl.constexpr, FACTOR: tl.constexpr):
    """Return a rule's new moments; ``FACTOR`` says whether gradients are scaled or negated."""
    grad = grad.to(tl.float32)
    if FACTOR:
        grad = grad * numbers.factor
    return MOMENTS(grad, m, v, numbers)


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
    MOMENTS: tl.constexpr,
    UPDATE: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    WHOLE: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
    FACTOR: tl.constexpr,
    FAST: tl.constexpr,
):
    """Update one tile: see `tile.py`; ``limit`` bounds updates where a codec is coarse."""
    CACHE: tl.constexpr = _cache(M, V, WHOLE)
    param_at = pointers.param + start + element
    grad = load(pointers.grad + start + element, mask, MASKED, CACHE)
    if grad.dtype == tl.float32 and (packed(M) or packed(V)):
        # Never read. Accesses of 16-bit values give a thread the 8 elements of a word; those of
        # 32-bit values alone would give them to two threads, which then exchange them.
        hint_at = pointers.grad.to(tl.pointer_type(tl.int16)) + start + element
        hint = tl.load(hint_at, mask=(block < 0)[:, :, None], other=0).to(tl.int32)
        grad = (grad.to(tl.int32, bitcast=True) | hint).to(tl.float32, bitcast=True)
    old_param = load(param_at, mask, MASKED, CACHE)
    raw_m, raw_v = load_moments(pointers, start, element, group, mask, MASKED, M, V, CACHE)
    scales = load_both_scales(pointers, block, M, V)
    m, v = decode_moments(raw_m, raw_v, scales, M, V)
    m, v, third = new_moments(grad, m, v, numbers, MOMENTS, FACTOR)
    fitted = fit_moments(m, v, scales, maximum, block, WHOLE, SKIP, FAST, M, V)
    bits = noise_of(low, high, numbers, mask, MASKED)
    COARSE: tl.constexpr = coarse(M) or coarse(V)
    update = UPDATE(m, fitted.root, third, numbers, limit, COARSE, SKIP, FAST)
    param = tl.fma(update, numbers.rate, old_param.to(tl.float32) * numbers.decay)
    coded_m, coded_v = encode_moments(m, v, fitted, bits, FAST, M, V)
    stored = round_parameter(param, bits, P, ROUND)
    if not WHOLE:
        count_nonfinite(pointers, leader & (fitted.keep == 0), block)
    writes = writes_of(fitted.keep, block, leader, mask, MASKED, SKIP)
    store(param_at, stored, writes.element, MASKED or SKIP)
    store_moments(pointers, start, element, group, coded_m, coded_v, writes, MASKED or SKIP, M, V)
    if not WHOLE:
        store_both_scales(pointers, block, fitted.scales, writes, M, V)


@triton.jit
def step_kernel(
    table,
    rows,
    owner,
    maxima,
    MOMENTS: tl.constexpr,
    UPDATE: tl.constexpr,
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
    program = program_of(table, rows, owner)
    row = program.row
    maximum = maxima + program.tensor * 2
    if HAS_SCALER:
        if is_skipped(row):
            return
    numel = tl.load(program.entry + NUMEL)
    pointers = tensor_pointers(program.entry, P, G, ALIGNED, M, V)
    numbers = row_numbers(row)
    limit = row_float(row, LIMIT)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    LANES: tl.constexpr = BLOCK // LANE
    first_tile = number_in_tensor(program) * TILES
    walk = walk_of(program.entry, numel, RAGGED, BLOCK)
    last_tile = first_tile
    if not RAGGED:
        last_tile = tl.minimum(first_tile + TILES, numel // TILE)
        element, block, leader = element_indices(row, BLOCK, TILE_BLOCKS, LANE)
        group = lane_numbers(row, BLOCK, TILE_BLOCKS, LANE)
        for tile in range(first_tile, last_tile):
            start = tl.multiple_of(tile * TILE, TILE)
            _step_tile(
                pointers, numbers, limit, maximum, start, element,
                tl.zeros_like(block) if WHOLE else tile * TILE_BLOCKS + block,
                tile * (TILE_BLOCKS * LANES) + group, leader, None,
                start.to(tl.uint32) + element.to(tl.uint32), (start >> 32).to(tl.uint32),
                False, MOMENTS, UPDATE, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST,
            )  # fmt: skip
        last_tile = tl.maximum(last_tile, first_tile)
    # What is left is stepped block by block: ends of tensors, and of rows that blocks do not fit.
    element, block, leader = element_indices(row, BLOCK, 1, LANE)
    group = lane_numbers(row, BLOCK, 1, LANE)
    last_block = tl.minimum((first_tile + TILES) * TILE_BLOCKS, walk.blocks)
    for index in range(last_tile * TILE_BLOCKS, last_block):
        inside = (index % walk.per_row) * BLOCK
        start = index // walk.per_row * walk.cols + inside
        _step_tile(
            pointers, numbers, limit, maximum, start, element,
            tl.zeros_like(block) if WHOLE else index + block,
            index * LANES + group, leader, inside + element < walk.cols,
            (start + element).to(tl.uint32), ((start + element) >> 32).to(tl.uint32),
            True, MOMENTS, UPDATE, P, M, V, WHOLE, SKIP, ROUND, FACTOR, FAST,
        )  # fmt: skip


@triton.jit
def maxima_kernel(
    table,
    rows,
    owner,
    maxima,
    MOMENTS: tl.constexpr,
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
    program = program_of(table, rows, owner)
    entry = program.entry
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    numbers = row_numbers(program.row)
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
    first_tile = number_in_tensor(program) * TILES
    for tile in range(first_tile, first_tile + TILES):
        start = tl.multiple_of(tile * TILE, TILE)
        mask = start + element < numel
        grad = tl.load(pointer_of(entry, GRAD, G, ALIGNED) + start + element, mask=mask, other=0)
        first = codes_pointer(entry, FIRST, ALIGNED, M) + start + element
        m = decode(tl.load(first, mask=mask, other=0), exponent_m, 0, M)
        v = m
        if V is not None:
            second = codes_pointer(entry, SECOND, ALIGNED, V) + start + element
            v = decode(tl.load(second, mask=mask, other=0), exponent_v, 0, V)
        m, v, _ = new_moments(grad, m, v, numbers, MOMENTS, FACTOR)
        largest_m = tl.maximum(largest_m, tl.abs(m))
        if V is None:
            v = tl.abs(m)
        largest_v = tl.maximum(largest_v, v.to(tl.uint32, bitcast=True))
    maximum = maxima + program.tensor * 2
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
    V: tl.constexpr,
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
    finite = largest_bits <= (LARGEST_FLOAT if V is None else LARGEST_SECOND)
    largest_root = tl.sqrt(largest_bits.to(tl.float32, bitcast=True))
    mask = mask & (tl.load(rows + tensor * ROW + ACTIVE, mask=mask, other=0) != 0)
    bad = tl.load(entry + NONFINITE, mask=mask, other=0).to(tl.pointer_type(tl.int64))
    tl.store(bad, tl.load(bad, mask=mask, other=0) + 1, mask=mask & (finite == 0))
    if SKIP:
        mask = mask & finite
    if scaled(M):
        new_m = tl.where(finite, fit_exponent(largest_m, M[2]), 254)
        first = tl.load(entry + FIRST_EXPONENT, mask=mask, other=0).to(tl.pointer_type(tl.uint8))
        if V is not None:
            new_v = tl.where(finite, fit_exponent(largest_root, M[2]), 254)
            second = tl.load(entry + SECOND_EXPONENT, mask=mask, other=0)
            second = second.to(tl.pointer_type(tl.uint8))
        tl.store(first, new_m.to(tl.uint8), mask=mask)
        if V is not None:
            tl.store(second, new_v.to(tl.uint8), mask=mask)
