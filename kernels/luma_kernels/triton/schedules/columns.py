"""The Adam-mini step as kernels where segments are columns: transposed layers.

A column's elements lie apart, so no program has a segment to itself. The first launch adds up
squares by column over runs of rows, the second adds those up by segment, in a fixed order, and
steps the second moments, and the third updates all else.

``cuts``, int64 ``[tensors, HEAD + 3 * RUNS]``, describes the tensors: the columns named below, then
for each run its first position, its first segment and the positions of one segment. ``partials``,
float64, and ``rates``, float32, go from one launch to the next; a rate is what a first moment is
multiplied by, and NaN where its segment is left as it was.

Of a parameter that is cut, other processes have other rows. Then ``sums``, float64, takes what the
part adds to the positions of the whole, and second moments are stepped when parts are added up.
"""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import tensor_pointers
from luma_kernels.triton.runtime.tables import (
    GRAD,
    NONFINITE,
    SECOND,
    is_skipped,
    number_in_tensor,
    pointer_of,
    program_of,
    row_numbers,
)
from luma_kernels.triton.schedules.segments import (
    LARGEST,
    PLAIN,
    gradient,
    next_second,
    total_of,
    update_tile,
)
from luma_kernels.triton.schedules.tile import element_indices

LENGTH = tl.constexpr(0)
"""Positions of one index of ``outer``."""
REDUCE = tl.constexpr(1)
"""Rows of one index of ``outer`` that are here."""
CHUNKS = tl.constexpr(2)
"""Runs of those rows."""
SEGMENTS = tl.constexpr(3)
"""Segments of one index of ``outer``."""
PARTIAL = tl.constexpr(4)
"""The tensor's first of ``partials``."""
RATE = tl.constexpr(5)
"""Its first of ``rates``."""
FIRST_SEGMENT_PROGRAM = tl.constexpr(6)
ELEMENTS = tl.constexpr(7)
"""Elements of one position, whole."""
SUM = tl.constexpr(8)
"""Its first of ``sums``."""
FIRST = tl.constexpr(9)
"""The part's first index of ``outer``, or its first position where positions are rows."""
INNER = tl.constexpr(10)
"""Elements of a position behind each other."""
HEAD = tl.constexpr(11)


@triton.jit
def _place(program, cut, BLOCK: tl.constexpr):
    """Return a program's index of ``outer``, its run of rows and its first column."""
    length = tl.load(cut + LENGTH)
    chunks = tl.load(cut + CHUNKS)
    across = tl.cdiv(length, BLOCK)
    outer = program // (across * chunks)
    inside = program % (across * chunks)
    return outer, inside // across, inside % across * BLOCK


@triton.jit(do_not_specialize=["first_tensor"])
def column_sums_kernel(
    table,
    rows,
    owner,
    cuts,
    partials,
    first_tensor,
    G: tl.constexpr,
    FACTOR: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    LANE: tl.constexpr,
    RUNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add up the squares of ``CHUNK`` rows in ``BLOCK`` columns."""
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    outer, chunk, column = _place(number_in_tensor(program), cut, BLOCK)
    length = tl.load(cut + LENGTH)
    if EVEN:
        length = tl.multiple_of(length, 16)
    reduce = tl.load(cut + REDUCE)
    numbers = row_numbers(program.row)
    inside = column + tl.arange(0, BLOCK)
    down = tl.arange(0, TILE_ROWS)
    total = tl.zeros((TILE_ROWS, BLOCK), tl.float64)
    grads = pointer_of(program.entry, GRAD, G, ALIGNED) + outer * reduce * length
    for first in range(0, CHUNK, TILE_ROWS):
        at = chunk * CHUNK + first + down
        mask = (at < reduce)[:, None] & (inside < length)[None, :]
        part = gradient(grads + at[:, None] * length + inside[None, :], mask, numbers, True, FACTOR)
        total += (part * part).to(tl.float64)
    to = partials + tl.load(cut + PARTIAL) + (outer * tl.load(cut + CHUNKS) + chunk) * length
    tl.store(to + inside, tl.sum(total, axis=0), mask=inside < length)


@triton.jit(do_not_specialize=["first_tensor"])
def column_parts_kernel(
    table,
    rows,
    owner,
    cuts,
    partials,
    sums,
    first_tensor,
    HAS_SCALER: tl.constexpr,
    BLOCK: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Add up what runs of rows have of ``BLOCK`` columns; the first of their programs does it."""
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    outer, chunk, column = _place(number_in_tensor(program), cut, BLOCK)
    if chunk > 0:
        return
    length = tl.load(cut + LENGTH)
    chunks = tl.load(cut + CHUNKS)
    inside = column + tl.arange(0, BLOCK)
    source = partials + tl.load(cut + PARTIAL) + outer * chunks * length + inside
    total = tl.zeros((BLOCK,), tl.float64)
    for index in range(chunks):
        total += tl.load(source + index * length, mask=inside < length, other=0)
    to = sums + tl.load(cut + SUM) + (tl.load(cut + FIRST) + outer) * length
    tl.store(to + inside, total, mask=inside < length)


@triton.jit(do_not_specialize=["first_tensor"])
def column_means_kernel(
    table,
    rows,
    owner,
    cuts,
    partials,
    rates,
    first_tensor,
    CUT: tl.constexpr,
    SKIP: tl.constexpr,
    FAST: tl.constexpr,
    HAS_SCALER: tl.constexpr,
    RUNS: tl.constexpr,
    TILE_CHUNKS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Step the second moment of one segment and write its rate.

    ``owner`` counts tensors from the bucket's first. With ``CUT``, ``partials`` are ``sums``.
    """
    program = program_of(table, rows, owner, first_tensor)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    number = program.pid.to(tl.int64) - tl.load(cut + FIRST_SEGMENT_PROGRAM)
    outer = number // tl.load(cut + SEGMENTS)
    segment = number % tl.load(cut + SEGMENTS)
    position = tl.load(cut + HEAD) + segment * tl.load(cut + HEAD + 2)
    size = tl.load(cut + HEAD + 2)
    for run in tl.static_range(1, RUNS):
        this = cut + HEAD + 3 * run
        here = segment >= tl.load(this + 1)
        later = tl.load(this) + (segment - tl.load(this + 1)) * tl.load(this + 2)
        position = tl.where(here, later, position)
        size = tl.where(here, tl.load(this + 2), size)
    length = tl.load(cut + LENGTH)
    chunks = tl.load(cut + CHUNKS)
    source = partials + tl.load(cut + PARTIAL)
    if CUT:
        chunks = tl.zeros_like(length) + 1
        source = partials + tl.load(cut + SUM)
    source += outer * chunks * length + position
    total = tl.zeros((TILE_CHUNKS, TILE_COLUMNS), tl.float64)
    for first_chunk in range(0, chunks, TILE_CHUNKS):
        chunk = first_chunk + tl.arange(0, TILE_CHUNKS)
        for first_column in range(0, size, TILE_COLUMNS):
            column = first_column + tl.arange(0, TILE_COLUMNS)
            mask = (chunk < chunks)[:, None] & (column < size)[None, :]
            total += tl.load(source + chunk[:, None] * length + column[None, :], mask=mask, other=0)
    numbers = row_numbers(program.row)
    share = 1.0 / (size * tl.load(cut + ELEMENTS)).to(tl.float64)
    second_at = pointer_of(program.entry, SECOND, tl.float32, False) + number
    v, rate = next_second(tl.load(second_at), total_of(total), share, numbers, FAST)
    finite = v <= LARGEST
    if SKIP:
        rate = tl.where(finite, rate, float("nan"))
        tl.store(second_at, v, mask=finite)
    else:
        tl.store(second_at, v)
    tl.store(rates + tl.load(cut + RATE) + number, rate)
    bad = pointer_of(program.entry, NONFINITE, tl.int64, False)
    tl.atomic_add(bad, tl.zeros_like(number) + 1, mask=finite == 0, sem="relaxed")


@triton.jit(do_not_specialize=["first_tensor"])
def column_update_kernel(
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
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    LANE: tl.constexpr,
    RUNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Update first moment and parameter in ``CHUNK`` rows of ``BLOCK`` columns."""
    program = program_of(table, rows, owner)
    if HAS_SCALER:
        if is_skipped(program.row):
            return
    cut = cuts + (program.tensor - first_tensor) * (HEAD + 3 * RUNS)
    outer, chunk, column = _place(number_in_tensor(program), cut, BLOCK)
    length = tl.load(cut + LENGTH)
    if EVEN:
        length = tl.multiple_of(length, 16)
    reduce = tl.load(cut + REDUCE)
    numbers = row_numbers(program.row)
    pointers = tensor_pointers(program.entry, P, G, ALIGNED, M, PLAIN)
    across, _, _ = element_indices(program.row, BLOCK, 1, LANE)
    inside = column + across
    segment = tl.load(cut + HEAD + 1) + (inside - tl.load(cut + HEAD)) // tl.load(cut + HEAD + 2)
    for run in tl.static_range(1, RUNS):
        this = cut + HEAD + 3 * run
        later = tl.load(this + 1) + (inside - tl.load(this)) // tl.load(this + 2)
        segment = tl.where(inside >= tl.load(this), later, segment)
    segment += (tl.load(cut + FIRST) + outer) * tl.load(cut + SEGMENTS)
    rate_at = rates + tl.load(cut + RATE) + segment
    rate = tl.load(rate_at, mask=inside < length, other=0)
    keep = rate == rate
    second_at = pointer_of(program.entry, SECOND, tl.float32, False) + segment
    second = tl.load(second_at, mask=inside < length, other=0)
    block, leader = _rows_of(TILE_ROWS, BLOCK // LANE)
    for first in range(0, CHUNK, TILE_ROWS):
        down = chunk * CHUNK + first + tl.arange(0, TILE_ROWS)[:, None, None]
        start = outer * reduce * length + column
        element = down * length + across
        mask = (down < reduce) & (inside < length)
        grad = gradient(pointers.grad + start + element, mask, numbers, True, FACTOR)
        update_tile(
            pointers, numbers, grad, rate, second, keep, leader,
            start, element, block, leader, mask, True, P, M, BLOCK, SKIP, ROUND,
        )  # fmt: skip


@triton.jit
def _rows_of(TILE_ROWS: tl.constexpr, LANES: tl.constexpr):
    """Return the rows of a tile and whether a lane is a row's first, ``[TILE_ROWS, LANES]``."""
    lanes = tl.arange(0, LANES)[None, :]
    block = tl.arange(0, TILE_ROWS)[:, None] + tl.zeros_like(lanes)
    return block, (lanes == 0) & (block >= 0)
