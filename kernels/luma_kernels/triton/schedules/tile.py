"""What schedules do with one tile of a tensor, whatever the rule.

A tile is ``[TILE_BLOCKS, BLOCK // LANE, LANE]`` elements of one warp. ``element`` are offsets of
elements, ``block`` and ``group`` ``[blocks, lanes]`` the numbers of blocks and lanes within the
tensor, ``leader`` whether a lane is its block's first. ``M`` and ``V`` are the moments' codecs; of
a rule with one moment ``V`` is ``None``, and what is said of the second moment means nothing.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from luma_kernels.triton.codecs.interface import (
    decode,
    encode,
    fit,
    load_codes,
    load_scales,
    relative,
    round_down_below,
    store_codes,
    store_scales,
)
from luma_kernels.triton.runtime.fastmath import sqrt
from luma_kernels.triton.runtime.noise import random_bits, third_draw, to_bfloat16
from luma_kernels.triton.runtime.tables import BLOCKS_PER_ROW, COLS, ZERO

# Bits of 3.39e38. A larger second moment codes to infinity: its block counts as non-finite.
LARGEST_SECOND = tl.constexpr(0x7F7F08F3)
LARGEST_FLOAT = tl.constexpr(0x7F7FFFFF)


class Scales(NamedTuple):
    """Both moments' ``scale`` and ``window``: see `codecs/interface.py`."""

    m: Any
    window_m: Any
    v: Any
    window_v: Any


class Fitted(NamedTuple):
    """New scales, with what was found on the way.

    Attributes:
        scales: the new ones.
        root: the second moment's root.
        keep: which blocks are finite.
    """

    scales: Any
    root: Any
    keep: Any


class Writes(NamedTuple):
    """Where a tile is written: by block, by lane and by element."""

    block: Any
    lane: Any
    element: Any


class Walk(NamedTuple):
    """How blocks lie in a tensor.

    Attributes:
        cols: elements of a row, or of the tensor where blocks fill its rows.
        per_row: blocks of such a row.
        blocks: blocks of the tensor.
    """

    cols: Any
    per_row: Any
    blocks: Any


@triton.jit
def element_indices(row, BLOCK: tl.constexpr, TILE_BLOCKS: tl.constexpr, LANE: tl.constexpr):
    """Return element offsets in a tile, block offsets of its lanes, and which lanes lead.

    A lane owns 16 bytes of codes and reads its block's exponent itself. A zero that the compiler
    does not know hides that blocks are neighbours too: it would otherwise give exponents a layout
    of their own, and shared memory to get into it and out of it.
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
def walk_of(entry, numel, RAGGED: tl.constexpr, BLOCK: tl.constexpr):
    """Return how blocks lie in a tensor; ``RAGGED`` says that they do not fill its rows."""
    cols = numel
    per_row = tl.cdiv(numel, BLOCK)
    blocks = per_row
    if RAGGED:
        cols = tl.load(entry + COLS)
        per_row = tl.load(entry + BLOCKS_PER_ROW)
        blocks = numel // cols * per_row
    return Walk(cols, per_row, blocks)


@triton.jit
def load_moments(
    pointers,
    start,
    element,
    group,
    mask,
    MASKED: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
    CACHE: tl.constexpr,
):
    """Return both moments as they are stored."""
    raw_m = load_codes(pointers.first, start + element, group, mask, MASKED, M, CACHE)
    raw_v = raw_m
    if V is not None:
        raw_v = load_codes(pointers.second, start + element, group, mask, MASKED, V, CACHE)
    return raw_m, raw_v


@triton.jit
def load_both_scales(pointers, block, M: tl.constexpr, V: tl.constexpr):
    """Return the scales of blocks."""
    m, window_m = load_scales(pointers.first_scale, pointers.first_scale, block, M)
    v, window_v = m, window_m
    if V is not None:
        v, window_v = load_scales(pointers.second_scale, pointers.second_window, block, V)
    return Scales(m, window_m, v, window_v)


@triton.jit
def decode_moments(raw_m, raw_v, scales, M: tl.constexpr, V: tl.constexpr):
    """Return both moments, float32."""
    m = decode(raw_m, scales.m[:, :, None], scales.window_m[:, :, None], M)
    v = m
    if V is not None:
        v = decode(raw_v, scales.v[:, :, None], scales.window_v[:, :, None], V)
    return m, v


@triton.jit
def fit_moments(
    m,
    v,
    scales,
    maximum,
    block,
    WHOLE: tl.constexpr,
    SKIP: tl.constexpr,
    FAST: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
):
    """Return the new scales of new moments, from the old; ``maximum`` has those of a tensor."""
    # Bits of non-negative floats are ordered like the floats, and those of NaN come last; a warp
    # has one instruction for the maximum of integers.
    if WHOLE:
        m_bits = tl.load(maximum).to(tl.uint32) + tl.zeros_like(block).to(tl.uint32)
    else:
        m_bits = tl.max(tl.max(tl.abs(m).to(tl.uint32, bitcast=True), axis=2), axis=1)[:, None]
    if V is None:
        keep = m_bits <= LARGEST_FLOAT
        root = v
        scale_m, window_m = fit(m, m, m_bits, scales.m, scales.window_m, keep, SKIP, FAST, M)
        scale_v, window_v = scale_m, window_m
    else:
        if WHOLE:
            v_bits = tl.load(maximum + 1).to(tl.uint32) + tl.zeros_like(block).to(tl.uint32)
        else:
            v_bits = tl.max(tl.max(v.to(tl.uint32, bitcast=True), axis=2), axis=1)[:, None]
        keep = v_bits <= LARGEST_SECOND
        root = sqrt(v, FAST)
        scale_m, window_m = fit(m, root, m_bits, scales.m, scales.window_m, keep, SKIP, FAST, M)
        scale_v, window_v = fit(v, root, v_bits, scales.v, scales.window_v, keep, SKIP, FAST, V)
    return Fitted(Scales(scale_m, window_m, scale_v, window_v), root, keep)


@triton.jit
def noise_of(low, high, numbers, mask, MASKED: tl.constexpr):
    """Return 32 random bits for each element, of the words of its index in the whole parameter."""
    bits = random_bits(low, high, numbers.low_key, numbers.high_key)
    if MASKED:
        # What fills up a block is coded like the rest, without noise.
        bits = tl.where(mask, bits, 0)
    return bits


@triton.jit
def encode_moments(m, v, fitted, bits, FAST: tl.constexpr, M: tl.constexpr, V: tl.constexpr):
    """Return both moments as they are to be stored."""
    scales = fitted.scales
    if relative(V):
        m = round_down_below(m, fitted.root, scales.m[:, :, None], M)
    coded_m = encode(
        m, fitted.root, scales.m[:, :, None], scales.window_m[:, :, None], bits, FAST, M
    )
    coded_v = coded_m
    if V is not None:
        coded_v = encode(
            v, fitted.root, scales.v[:, :, None], scales.window_v[:, :, None], bits, FAST, V
        )
    return coded_m, coded_v


@triton.jit
def round_parameter(param, bits, P: tl.constexpr, ROUND: tl.constexpr):
    """Return a float32 parameter in its dtype ``P``; ``ROUND`` is stochastic, for bfloat16."""
    if tl.bfloat16 == P:
        draw = 0x7FFF + ((param.to(tl.uint32, bitcast=True) >> 16) & 1)
        if ROUND:
            draw = third_draw(bits)
        stored = to_bfloat16(param, draw)
    else:
        stored = param.to(P)
    return stored


@triton.jit
def count_nonfinite(pointers, bad, block):
    """Add the number of blocks that are ``bad`` to the tensor's counter."""
    one = tl.zeros_like(block).to(tl.int64) + 1
    tl.atomic_add(pointers.nonfinite + tl.zeros_like(block), one, mask=bad, sem="relaxed")


@triton.jit
def writes_of(keep, block, leader, mask, MASKED: tl.constexpr, SKIP: tl.constexpr):
    """Return where a tile is written."""
    write_block = leader
    write_lane = block >= 0
    # Where nothing is masked it is not read, and a tuple holds no None.
    write = keep[:, :, None]
    if SKIP:
        write_block = write_block & keep
        write_lane = keep | (block < 0)
        if MASKED:
            write = write & mask
    elif MASKED:
        write = mask
    return Writes(write_block, write_lane, write)


@triton.jit
def store_moments(
    pointers,
    start,
    element,
    group,
    coded_m,
    coded_v,
    writes,
    MASKED: tl.constexpr,
    M: tl.constexpr,
    V: tl.constexpr,
):
    """Store what `encode_moments` returned."""
    at = start + element
    store_codes(pointers.first, at, group, coded_m, writes.lane, writes.element, MASKED, M)
    if V is not None:
        store_codes(pointers.second, at, group, coded_v, writes.lane, writes.element, MASKED, V)


@triton.jit
def store_both_scales(pointers, block, scales, writes, M: tl.constexpr, V: tl.constexpr):
    """Store new scales of blocks."""
    first = pointers.first_scale
    store_scales(first, first, block, scales.m, scales.window_m, writes.block, M)
    if V is not None:
        second = pointers.second_scale
        window = pointers.second_window
        store_scales(second, window, block, scales.v, scales.window_v, writes.block, V)
