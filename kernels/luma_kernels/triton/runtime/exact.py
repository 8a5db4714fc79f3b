"""Sums of squares as integers, which depend on no order: those of `luma_core.rules.norms`.

A sum is ``DIGITS`` int64 numbers, of units ``2**(32 * digit - 149)``. Programs add to them in
memory, and so may processes. In flat tensors, which may be cut anywhere, each square counts by
itself. In tensors whose rows are cut into blocks no process has a part of a block, and what counts
is the sum of a block: squares of a lane are added in float32, up to the largest float, and the sums
of lanes as multiples of the last place of the largest of them, or of ``2**-126``.

So a block's sum is the same in any tile, and in any layout of elements over threads. Within a lane
additions are of two numbers each, written out or a reduction of two, which has no order.
"""

import triton
import triton.language as tl

DIGITS = tl.constexpr(16)
"""Columns of a sum; a power of two, of which `norms.DIGITS` are used."""

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def lane_sums(x):
    """Return the sums of float32 ``[blocks, lanes, 8]`` by lane."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, 2)))
    first, second = tl.split(even + odd)
    return tl.sum(first + second, axis=2)


@triton.jit
def lane_square_sums(x):
    """Return the sums of the squares of float32 ``[blocks, lanes, 8]`` by lane."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, 2)))
    a, b = tl.split(even)
    c, d = tl.split(odd)
    return tl.sum(tl.fma(d, d, tl.fma(c, c, tl.fma(b, b, a * a))), axis=2)


@triton.jit
def finite_squares(x, keep, SKIP: tl.constexpr, FLAT: tl.constexpr):
    """Return the finite squares of a tile as `add_squares` takes them.

    Args:
        x: float32 ``[blocks, lanes, 8]``.
        keep: where squares count; to be broadcast to ``[blocks, lanes]``.
        SKIP: whether ``keep`` matters.
        FLAT: whether squares count one by one, or added up by lane.
    """
    squares = x * x
    squares = tl.where(squares < float("inf"), squares, 0.0)
    if FLAT:
        if SKIP:
            squares = tl.where(keep[:, :, None], squares, 0.0)
    else:
        squares = tl.minimum(lane_sums(squares), LARGEST)
        if SKIP:
            squares = tl.where(keep, squares, 0.0)
    return squares


@triton.jit
def no_digits(BLOCKS: tl.constexpr, FLAT: tl.constexpr):
    """Return what `add_squares` adds tiles of ``BLOCKS`` blocks to."""
    ROWS: tl.constexpr = 1 if FLAT else BLOCKS
    return tl.zeros((ROWS, DIGITS), tl.int64)


@triton.jit
def add_squares(digits, squares, FLAT: tl.constexpr):
    """Return ``digits`` with what `finite_squares` returned added."""
    return digits + (_element_digits(squares)[None, :] if FLAT else _block_digits(squares))


@triton.jit
def _parts(x):
    """Return the mantissas of non-negative finite floats, and their places above ``2**-149``."""
    bits = x.to(tl.int32, bitcast=True)
    place = tl.maximum(bits >> 23, 1) - 1
    return bits - (place << 23), place


@triton.jit
def _block_digits(sums):
    """Return the digits of the sums of blocks, ``[blocks, DIGITS]``, from those of their lanes."""
    largest = tl.max(sums.to(tl.int32, bitcast=True), axis=1)
    exponent = tl.maximum(largest >> 23, 24)
    scale = ((277 - exponent) << 23).to(tl.float32, bitcast=True)
    total = tl.sum(tl.fma(sums, scale[:, None], 0.5).to(tl.int32), axis=1)
    if sums.shape[1] >= 128:
        # As many lanes of 2**24 are one more than 31 bits hold.
        total = tl.minimum(total.to(tl.uint32, bitcast=True), 0x7FFFFFFF)
    place = (exponent - 1)[:, None]
    # Shifts of 64 bits leave 0 in the lower half for digits that a number does not reach.
    shift = (tl.arange(0, DIGITS) * 32 + 32)[None, :] - place
    shift = tl.minimum(tl.maximum(shift, 0), 63).to(tl.int64)
    return ((total[:, None].to(tl.int64) << 32) >> shift) & 0xFFFFFFFF


@triton.jit
def _element_digits(x):
    """Return the digits of the sum of non-negative finite floats, ``[DIGITS]``."""
    mantissa, place = _parts(x)
    first = place >> 5
    wide = mantissa.to(tl.int64) << (place & 31).to(tl.int64)
    # Squares of a tile are mostly of like size: only digits that occur are gone through.
    lowest = tl.min(tl.min(tl.min(tl.where(mantissa > 0, first, DIGITS), axis=2), axis=1), axis=0)
    highest = tl.max(tl.max(tl.max(first, axis=2), axis=1), axis=0)
    digits = tl.zeros((DIGITS,), tl.int64)
    for digit in range(lowest, highest + 2):
        part = tl.where(first == digit, wide & 0xFFFFFFFF, 0)
        part += tl.where(first + 1 == digit, wide >> 32, 0)
        total = tl.sum(tl.sum(tl.sum(part, axis=2), axis=1), axis=0)
        digits += tl.where(tl.arange(0, DIGITS) == digit, total, 0)
    return digits


@triton.jit
def store_digits(to, digits):
    """Add to the sum in memory at ``to``."""
    total = tl.sum(digits, axis=0)
    tl.atomic_add(to + tl.arange(0, DIGITS), total, mask=total != 0, sem="relaxed")


@triton.jit
def load_total(at):
    """Return the number that a sum in memory is, float64."""
    digit = tl.arange(0, DIGITS)
    unit = ((digit * 32 + (1023 - 149)).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    return tl.sum(tl.load(at + digit).to(tl.float64) * unit, axis=0)
