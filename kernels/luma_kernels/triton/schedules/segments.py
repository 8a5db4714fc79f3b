"""The Adam-mini step as a kernel: one program takes segments that lie in one piece each.

A segment's gradient is read twice, first for the sum of its squares and then for the update; the
second time it comes from registers where a tile holds the segment, else mostly from a cache. One
program adds up a segment in a fixed order, so steps are deterministic. It does so in float64, and
what another order changes there a float32 mean seldom shows.

``runs``, int64 ``[tensors, 1 + RUNS, 4]``, says where segments are. The first row of a tensor holds
programs, elements and segments of one index of ``outer``; each further row one run's first program,
first element, first segment and the elements of one segment.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import (
    decode,
    encode,
    fit,
    load,
    load_codes,
    load_scales,
    round_down_below,
    scaled,
    store,
    store_codes,
    store_scales,
    tensor_pointers,
)
from luma_kernels.triton.runtime.exact import lane_square_sums
from luma_kernels.triton.runtime.fastmath import reciprocal, sqrt
from luma_kernels.triton.runtime.noise import random_bits
from luma_kernels.triton.runtime.tables import SECOND as SECOND_COLUMN
from luma_kernels.triton.runtime.tables import (
    is_skipped,
    number_in_tensor,
    pointer_of,
    program_of,
    row_numbers,
)
from luma_kernels.triton.schedules.tile import element_indices, round_parameter

RUN_WIDTH = tl.constexpr(4)
LARGEST = tl.constexpr(3.4028234663852886e38)
PLAIN = tl.constexpr(("fp32",))
"""The codec of the second moments: float32, one for each segment."""


@triton.jit
def gradient(pointer, mask, numbers, MASKED: tl.constexpr, FACTOR: tl.constexpr):
    """Return gradients as the rule sees them, float32."""
    grad = load(pointer, mask, MASKED).to(tl.float32)
    if FACTOR:
        grad = grad * numbers.factor
    return grad


@triton.jit
def square_sums(x, GROUPED: tl.constexpr):
    """Return the sums of the squares of ``[blocks, lanes, LANE]`` by lane, float64.

    ``GROUPED`` says that positions are whole lanes, which are then added up in float32: they are
    the same lanes wherever a tile begins.
    """
    return lane_square_sums(x).to(tl.float64) if GROUPED else tl.sum((x * x).to(tl.float64), axis=2)


@triton.jit
def total_of(sums):
    """Return the sum of ``[blocks, lanes]``."""
    return tl.sum(tl.sum(sums, axis=1), axis=0)


@triton.jit
def next_second(v, total, share, numbers, FAST: tl.constexpr):
    """Return a segment's new second moment and what its first moment is multiplied by.

    ``v`` is the old one, ``total`` the sum of the squares of its elements and ``share``, float64,
    one over their number.
    """
    mean = (total * share).to(tl.float32)
    v = tl.fma(mean, numbers.new_share2, v * numbers.beta2)
    return v, numbers.rate * reciprocal(
        tl.fma(sqrt(v, FAST), numbers.root_factor, numbers.eps), FAST
    )


@triton.jit
def update_tile(
    pointers,
    numbers,
    grad,
    rate,
    second,
    keep,
    keep_block,
    start,
    element,
    block,
    leader,
    mask,
    MASKED: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Update the first moment and the parameter of one tile.

    ``grad`` and ``element`` are ``[blocks, lanes, LANE]``; to them broadcast ``rate``, what the
    first moment is multiplied by, ``second``, the new second moment, and ``keep``, whether that is
    finite. It is ``keep_block`` for a first moment with scales, ``[blocks, lanes]``.
    """
    param_at = pointers.param + start + element
    scales = pointers.first_scale + start // BLOCK
    old_param = load(param_at, mask, MASKED)
    raw = load_codes(pointers.first + start, element, None, mask, MASKED, M)
    inside = (block * BLOCK >= 0) & leader
    if scaled(M) and MASKED:
        inside = tl.max(mask.to(tl.int32), axis=2) > 0
    scale, window = load_scales(scales, scales, block, M, inside, MASKED)
    m = decode(raw, scale[:, :, None], window[:, :, None], M)
    m = tl.fma(grad - m, numbers.new_share, m)
    if scaled(M):
        largest = tl.max(tl.max(tl.abs(m).to(tl.uint32, bitcast=True), axis=2), axis=1)[:, None]
        largest = largest + tl.zeros_like(block).to(tl.uint32)
        # Of what is not finite the scale says so without being told.
        scale, window = fit(m, m, largest, scale, window, True, True, False, M)
    at = start + element
    bits = random_bits(
        at.to(tl.uint32), (at >> 32).to(tl.uint32), numbers.low_key, numbers.high_key
    )
    param = tl.fma(m, rate, old_param.to(tl.float32) * numbers.decay)
    m = round_down_below(m, tl.sqrt(second), scale[:, :, None], M)
    coded = encode(m, m, scale[:, :, None], window[:, :, None], bits, False, M)
    stored = round_parameter(param, bits, P, ROUND)
    write = mask
    write_block = leader
    if scaled(M):
        write_block = inside & leader
    if SKIP:
        write_block = write_block & keep_block
        write = keep
        if MASKED:
            write = write & mask
    store(param_at, stored, write, MASKED or SKIP)
    store_codes(pointers.first + start, element, None, coded, None, write, MASKED or SKIP, M)
    if scaled(M):
        # Lanes of a block, all of which load its exponent, need not be of one warp.
        tl.debug_barrier()
        store_scales(scales, scales, block, scale, window, write_block, M)


@triton.jit(do_not_specialize=["first_tensor"])
def mini_kernel(
    table,
    rows,
    owner,
    maxima,
    runs,
    first_tensor,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
    FACTOR: tl.constexpr,
    FAST: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    LANE: tl.constexpr,
    RUNS: tl.constexpr,
    SINGLE: tl.constexpr,
    FULL: tl.constexpr,
    EVEN: tl.constexpr,
    GROUPED: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Take the step of some segments of one tensor.

    ``SINGLE`` says that a tile holds any segment, ``FULL`` that tiles fill segments exactly,
    ``EVEN`` that segments are multiples of 16 elements, ``GROUPED`` that their positions are whole
    lanes. A program takes as many segments as ``SPAN`` elements hold, and one at least.
    """
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    pointers = tensor_pointers(program.entry, P, G, ALIGNED, M, PLAIN)
    second = pointer_of(program.entry, SECOND_COLUMN, tl.float32, False)
    numbers = row_numbers(program.row)
    own = number_in_tensor(program)
    runs += (program.tensor - first_tensor) * ((1 + RUNS) * RUN_WIDTH)
    programs = tl.load(runs)
    outer = own // programs
    own = own % programs
    number = tl.zeros_like(own) + 1
    for index in tl.static_range(1, RUNS):
        number += (own >= tl.load(runs + (1 + index) * RUN_WIDTH)).to(tl.int64)
    run = runs + number * RUN_WIDTH
    length = tl.load(run + 3)
    if EVEN:
        length = tl.multiple_of(length, 16)
    share = 1.0 / length.to(tl.float64)
    each = tl.maximum(SPAN // length, 1)
    first = (own - tl.load(run)) * each
    segments_at = outer * tl.load(runs + 2) + tl.load(run + 2)
    elements_at = outer * tl.load(runs + 1) + tl.load(run + 1)
    # The run's end is the next one's first segment, or the end of all.
    count = tl.load(runs + 2) - tl.load(run + 2)
    for index in tl.static_range(1, RUNS):
        ahead = tl.load(runs + (1 + index) * RUN_WIDTH + 2) - tl.load(run + 2)
        count = tl.where(ahead > 0, tl.minimum(count, ahead), count)
    last = tl.minimum(first + each, count)
    element, block, leader = element_indices(program.row, BLOCK, TILE_BLOCKS, LANE)
    TILE: tl.constexpr = BLOCK * TILE_BLOCKS
    for segment in range(first, last):
        start = elements_at + segment * length
        if EVEN:
            start = tl.multiple_of(start, 16)
        mask = element < length
        second_at = second + segments_at + segment
        v = tl.load(second_at)
        if SINGLE:
            grad = gradient(pointers.grad + start + element, mask, numbers, not FULL, FACTOR)
            sums = square_sums(grad, GROUPED)
        else:
            sums = tl.zeros((TILE_BLOCKS, BLOCK // LANE), tl.float64)
            for done in range(0, length, TILE):
                at = start + done
                if EVEN:
                    at = tl.multiple_of(at, 16)
                inside = element < length - done
                part = gradient(pointers.grad + at + element, inside, numbers, not FULL, FACTOR)
                sums += square_sums(part, GROUPED)
        v, rate = next_second(v, total_of(sums), share, numbers, FAST)
        finite = v <= LARGEST
        keep = tl.zeros_like(block).to(tl.float32) + v <= LARGEST
        if SINGLE:
            update_tile(
                pointers, numbers, grad, rate, v, keep[:, :, None], keep,
                start, element, block, leader, mask,
                not FULL, P, M, BLOCK, SKIP, ROUND,
            )  # fmt: skip
        else:
            for done in range(0, length, TILE):
                at = start + done
                if EVEN:
                    at = tl.multiple_of(at, 16)
                inside = element < length - done
                grad = gradient(pointers.grad + at + element, inside, numbers, not FULL, FACTOR)
                update_tile(
                    pointers, numbers, grad, rate, v, keep[:, :, None], keep,
                    at, element, block, leader, inside,
                    not FULL, P, M, BLOCK, SKIP, ROUND,
                )  # fmt: skip
        # No warp may find the new second moment where it expects the old one.
        tl.debug_barrier()
        if SKIP:
            tl.store(second_at, v, mask=finite)
        else:
            tl.store(second_at, v)
        one = tl.zeros_like(length) + 1
        tl.atomic_add(pointers.nonfinite, one, mask=finite == 0, sem="relaxed")
