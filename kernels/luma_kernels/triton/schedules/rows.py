"""The Adam-mini step as kernels where a parameter is cut and its positions are runs of elements.

One process has some of the positions, each as a whole. The first launch adds up their squares, in
the order in which `segments.py` adds up a segment; sums of all processes are added up;
`columns.py` steps the second moments, which all processes have; the last launch updates
all else. Buffers are those of `columns.py`.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import tensor_pointers
from luma_kernels.triton.runtime.tables import (
    GRAD,
    NUMEL,
    SECOND,
    is_skipped,
    number_in_tensor,
    pointer_of,
    program_of,
    row_numbers,
)
from luma_kernels.triton.schedules.columns import (
    FIRST,
    HEAD,
    INNER,
    LENGTH,
    RATE,
    SEGMENTS,
    SUM,
)
from luma_kernels.triton.schedules.segments import (
    PLAIN,
    gradient,
    square_sums,
    total_of,
    update_tile,
)
from luma_kernels.triton.schedules.tile import element_indices


@triton.jit
def _positions(program, entry, inner, SPAN: tl.constexpr):
    """Return the first position of a program, and the one behind its last."""
    each = tl.maximum(SPAN // inner, 1)
    first = program * each
    return first, tl.minimum(first + each, tl.load(entry + NUMEL) // inner)


@triton.jit
def _segment_of(position, cut, RUNS: tl.constexpr):
    """Return the number of a position's segment."""
    length = tl.load(cut + LENGTH)
    inside = position % length
    segment = inside // tl.load(cut + HEAD + 2)
    for run in tl.static_range(1, RUNS):
        this = cut + HEAD + 3 * run
        later = tl.load(this + 1) + (inside - tl.load(this)) // tl.load(this + 2)
        segment = tl.where(inside >= tl.load(this), later, segment)
    return position // length * tl.load(cut + SEGMENTS) + segment


@triton.jit(do_not_specialize=["first_tensor"])
def row_sums_kernel(
    table,
    rows,
    owner,
    cuts,
    sums,
    first_tensor,
    G: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    GROUPED: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    LANE: tl.constexpr,
    RUNS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Add up the squares of some positions."""
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    inner = tl.load(cut + INNER)
    if EVEN:
        inner = tl.multiple_of(inner, 16)
    first, last = _positions(number_in_tensor(program), program.entry, inner, SPAN)
    grads = pointer_of(program.entry, GRAD, G, ALIGNED)
    numbers = row_numbers(program.row)
    element, _, _ = element_indices(program.row, BLOCK, TILE_BLOCKS, LANE)
    to = sums + tl.load(cut + SUM) + tl.load(cut + FIRST)
    for position in range(first, last):
        total = tl.zeros((TILE_BLOCKS, BLOCK // LANE), tl.float64)
        for done in range(0, inner, BLOCK * TILE_BLOCKS):
            at = position * inner + done
            if EVEN:
                at = tl.multiple_of(at, 16)
            grad = gradient(grads + at + element, element < inner - done, numbers, not FULL, FACTOR)
            total += square_sums(grad, GROUPED)
        tl.store(to + position, total_of(total))


@triton.jit(do_not_specialize=["first_tensor"])
def row_update_kernel(
    table,
    rows,
    owner,
    cuts,
    rates,
    first_tensor,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    SKIP: tl.constexpr,
    ROUND: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    LANE: tl.constexpr,
    RUNS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Update first moment and parameter of some positions."""
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    inner = tl.load(cut + INNER)
    if EVEN:
        inner = tl.multiple_of(inner, 16)
    first, last = _positions(number_in_tensor(program), program.entry, inner, SPAN)
    pointers = tensor_pointers(program.entry, P, G, ALIGNED, M, PLAIN)
    numbers = row_numbers(program.row)
    element, block, leader = element_indices(program.row, BLOCK, TILE_BLOCKS, LANE)
    for position in range(first, last):
        segment = _segment_of(tl.load(cut + FIRST) + position, cut, RUNS)
        rate = tl.load(rates + tl.load(cut + RATE) + segment)
        second = tl.load(pointer_of(program.entry, SECOND, tl.float32, False) + segment)
        keep = tl.zeros_like(block).to(tl.float32) + rate
        keep = keep == keep
        for done in range(0, inner, BLOCK * TILE_BLOCKS):
            at = position * inner + done
            if EVEN:
                at = tl.multiple_of(at, 16)
            mask = element < inner - done
            grad = gradient(pointers.grad + at + element, mask, numbers, not FULL, FACTOR)
            update_tile(
                pointers, numbers, grad, rate, second, keep[:, :, None], keep,
                at, element, block, leader, mask,
                not FULL, P, M, BLOCK, SKIP, ROUND,
            )  # fmt: skip
