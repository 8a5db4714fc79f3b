"""Launcher of the native step of Adam-mini."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core.codecs import Codec, Partition, SegmentMean
from luma_core.rules import ParameterStep
from luma_core.rules.adamw import MOMENTS
from luma_kernels.cpu.coding import describe_layout, moment_kind
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.rules import MINI
from luma_kernels.cpu.structs import BFLOAT, NONE, PLAIN, Layout, Segments

_UNSCALED = (PLAIN, BFLOAT)

_CHUNK_ELEMENTS = 1 << 10
"""``kChunk`` of ``native.h``: the blocks of first moments that have no scales."""

_PIECE_ELEMENTS = 1 << 16
"""``kPieceElements`` of ``native.h``. A segment of no more stays in a cache."""


def unsupported_first(codec: Codec) -> str:
    """Return why the library cannot step a first moment beside segments; empty if it can."""
    kind = moment_kind(codec)
    if (MINI, kind, NONE, False) not in native_library().instances:
        return f"there is no native kernel of the codecs {codec.name} and segment_mean together"
    if codec.block_size is None and kind not in _UNSCALED:
        return f"there is no native kernel of {codec.name} with block_size=None for AdamMiniRule"
    return ""


def first_layout(codec: Codec, shape: tuple[int, ...]) -> Layout:
    """Return how a first moment is cut into blocks; one without scales takes any."""
    if moment_kind(codec) in _UNSCALED:
        return Layout(1, codec.grid(shape).numel, _CHUNK_ELEMENTS)
    return describe_layout(codec, shape)


class SegmentRoom(NamedTuple):
    """The segments of a step, and the memory that their addresses are of."""

    segments: Segments
    room: tuple[Tensor, ...]


def describe_segments(item: ParameterStep) -> SegmentRoom:
    """Return the segments of a step whose second moment is one value for each.

    Memory: beside a segment of more than 65,536 elements, or of elements that lie apart, 8 bytes
    for each position and 4 for each segment; in transposed layers 12 for each column.
    """
    stored = item.moments[MOMENTS[1]]
    assert isinstance(stored.codec, SegmentMean)
    cut = stored.codec.partition
    alone = _alone(cut, item.moments[MOMENTS[0]].codec, tuple(item.param.shape))
    pieces = cut.inner if cut.reduce > 1 else -(-cut.inner // _PIECE_ELEMENTS)
    positions = cut.outer * cut.length
    sums = torch.empty(0 if alone else positions * pieces, dtype=torch.float64, device="cpu")
    roots = torch.empty(
        0 if alone else positions * cut.inner if cut.reduce > 1 else cut.segments,
        dtype=torch.float32,
        device="cpu",
    )
    runs = _runs(cut)
    segments = Segments(
        *(cut.outer, cut.reduce, cut.length, cut.inner),
        runs=address(runs),
        runs_count=len(runs),
        per_outer=cut.segments_per_outer,
        pieces=pieces,
        second=address(stored.fields["value"]),
        sums=address(sums),
        roots=address(roots),
        alone=alone,
    )
    return SegmentRoom(segments, (runs, sums, roots))


def _alone(cut: Partition, codec: Codec, shape: tuple[int, ...]) -> bool:
    """Return whether each segment has blocks of its own and is short enough to be taken at once."""
    lengths = [size * cut.inner for count, size in cut.runs if count]
    if cut.reduce > 1 or max(lengths, default=0) > _PIECE_ELEMENTS:
        return False
    if moment_kind(codec) in _UNSCALED:
        return True
    grid = codec.grid(shape)
    block = codec.block_size or 1
    unit = block if grid.flat or grid.cols % block == 0 else grid.cols
    return all(length % unit == 0 for length in lengths)


@cache
def _runs(cut: Partition) -> Tensor:
    """Return first position, first segment and positions of a segment for each run."""
    rows, position, segment = [], 0, 0
    for count, size in cut.runs:
        rows.append([position, segment, size])
        position, segment = position + count * size, segment + count
    return torch.tensor(rows, dtype=torch.int64, device="cpu")
