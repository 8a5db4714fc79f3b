"""The scales of a moment's blocks: of one parameter exactly, of many in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from luma_core.codecs import Codec
from luma_core.rules.base import Values
from luma_core.stats.bins import Counts
from luma_core.stats.report import ScaleHistogram, ScaleStats

_LOWEST = -149
"""Exponent of the smallest positive float32."""

_OCTAVES = 128 - _LOWEST
_SUBNORMAL = -126 - _LOWEST
_MANTISSA_BITS = 23
_EXPONENT_MASK = 0xFF

_MEDIAN_SHIFT = 13
"""Low bits of a float32 scale that totals cut off: the 10 bits of mantissa left give 0.1%."""

_PIECE = 1 << 14
"""Blocks that PyTorch does not share out to threads: the others would wait for more at full speed,
on the cores that measure tiles."""


def block_scales(
    codec: Codec, fields: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Values | None:
    """Return the scale of each block, float32 ``[blocks]``; ``None`` for codecs without."""
    flat = {
        name: fields[name].detach().cpu().reshape(-1)
        for name, spec in codec.layout(shape).items()
        if spec.entries_per_block == 1
    }
    blocks = max((field.numel() for field in flat.values()), default=0)
    found = []
    for start in range(0, max(blocks, 1), _PIECE):
        pieces = {name: field[start : start + _PIECE] for name, field in flat.items()}
        scale = codec.scales(pieces)
        if scale is None:
            return None
        found.append(scale.float().numpy())
    return np.concatenate(found)


class ScaleCounts:
    """Collects a `ScaleHistogram`."""

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(_OCTAVES, dtype=np.int64)
        self._zeros = 0

    def add(self, values: Values) -> None:
        """Take in finite scales, float32 ``[blocks]``; of negative ones, their magnitude."""
        exponents = (values.view(np.int32) >> _MANTISSA_BITS) & _EXPONENT_MASK
        found = np.bincount(exponents, minlength=_EXPONENT_MASK + 1)
        self._counts[_SUBNORMAL:] += found[1:_EXPONENT_MASK]
        if found[0]:
            small = np.abs(values[exponents == 0])
            positive = small[small > 0]
            self._zeros += small.size - positive.size
            # The exponents of numpy are of fractions from 0.5 to 1, which are one higher.
            octaves = np.frexp(positive)[1] - (1 + _LOWEST)
            self._counts[:_SUBNORMAL] += np.bincount(octaves, minlength=_SUBNORMAL)

    def merge(self, other: ScaleHistogram) -> None:
        """Take in what another collection found."""
        start = other.first - _LOWEST
        self._counts[start : start + len(other.counts)] += np.array(other.counts, dtype=np.int64)
        self._zeros += other.zeros

    def result(self) -> ScaleHistogram:
        """Return what was collected."""
        used = np.flatnonzero(self._counts)
        if not used.size:
            return ScaleHistogram(0, (), self._zeros)
        low, high = int(used[0]), int(used[-1])
        return ScaleHistogram(
            low + _LOWEST, tuple(self._counts[low : high + 1].tolist()), self._zeros
        )


def scale_stats(values: Values) -> ScaleStats:
    """Return the exact statistics of one moment's block scales ``[blocks]``."""
    finite = values[np.isfinite(values)]
    counts = ScaleCounts()
    counts.add(finite)
    return ScaleStats(
        blocks=values.size,
        nonfinite=values.size - finite.size,
        min=float(finite.min()) if finite.size else None,
        median=float(np.median(finite.astype(np.float64))) if finite.size else None,
        max=float(finite.max()) if finite.size else None,
        histogram=counts.result(),
    )


class Scales:
    """Collects the `ScaleStats` of many moments without keeping their scales."""

    def __init__(self) -> None:
        self._blocks = 0
        self._nonfinite = 0
        self._min = math.inf
        self._max = -math.inf
        self._counts = ScaleCounts()
        self._bins: Counts = np.zeros(1 << (31 - _MEDIAN_SHIFT), dtype=np.int64)

    def add(self, values: Values, exact: ScaleStats) -> None:
        """Take in one moment's scales and their statistics."""
        self._blocks += exact.blocks
        self._nonfinite += exact.nonfinite
        self._counts.merge(exact.histogram)
        if exact.min is None or exact.max is None:
            return
        self._min, self._max = min(self._min, exact.min), max(self._max, exact.max)
        # The bit patterns of non-negative floats are in the order of the floats.
        bits = values[np.isfinite(values)].clip(min=0.0).view(np.int32)
        np.add.at(self._bins, bits >> _MEDIAN_SHIFT, 1)

    def result(self) -> ScaleStats:
        """Return what was collected."""
        found = self._counts.result()
        finite = self._blocks - self._nonfinite
        if not finite:
            return ScaleStats(self._blocks, self._nonfinite, None, None, None, found)
        ranks = [(finite - 1) // 2, finite // 2]
        low, high = (
            self._edge(int(i)) for i in np.searchsorted(self._bins.cumsum(), ranks, "right")
        )
        median = (low + high) / 2
        return ScaleStats(self._blocks, self._nonfinite, self._min, median, self._max, found)

    def _edge(self, index: int) -> float:
        edge = (np.array([index], dtype=np.int32) << _MEDIAN_SHIFT).view(np.float32)
        return min(max(float(edge[0]), self._min), self._max)
