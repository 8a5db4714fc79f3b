"""Running sums over tiles; two of them merge into one, so totals come from parameters."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luma_core.codecs import Codec
from luma_core.stats.report import (
    HISTOGRAM_BINS,
    HISTOGRAM_LOW,
    HISTOGRAM_WIDTH,
    Histogram,
    MomentStats,
    QuantityStats,
    ScaleStats,
)
from luma_core.stats.tiles import MomentTile, Values

Counts = npt.NDArray[np.int64]

CODE_BINS = 1 << 16

_MEDIAN_SHIFT = 13
"""Low bits of a float32 scale that totals cut off: the 10 bits of mantissa left give 0.1%."""


class Quantity:
    """Collects `QuantityStats`."""

    def __init__(self) -> None:
        self.elements = 0
        self.nonfinite = 0
        self.zeros = 0
        self.square_sum = 0.0
        self.max = 0.0
        # One more bin at each end, for what lies below and above.
        self.counts: Counts = np.zeros(HISTOGRAM_BINS + 2, dtype=np.int64)

    def add(self, values: Values) -> None:
        """Take in float64 ``[elements]``."""
        finite = np.isfinite(values)
        size = np.abs(values if finite.all() else values[finite])
        self.elements += values.size
        self.nonfinite += values.size - size.size
        if not size.size:
            return
        # numpy sums pairwise in one thread: the result does not depend on the number of cores.
        self.square_sum += float(np.square(size).sum())
        self.max = max(self.max, float(size.max()))
        bins = np.log10(size[size > 0])
        self.zeros += size.size - bins.size
        bins -= HISTOGRAM_LOW
        bins /= HISTOGRAM_WIDTH
        # Clipped to at least 0 by the added 1, so cutting off the fraction rounds down.
        bins = bins.clip(-1.0, HISTOGRAM_BINS, out=bins) + 1.0
        self.counts += np.bincount(bins.astype(np.int64), minlength=HISTOGRAM_BINS + 2)

    def merge(self, other: Quantity) -> None:
        """Take in another collection."""
        self.elements += other.elements
        self.nonfinite += other.nonfinite
        self.zeros += other.zeros
        self.square_sum += other.square_sum
        self.max = max(self.max, other.max)
        self.counts += other.counts

    def result(self) -> QuantityStats:
        """Return what was collected."""
        finite = self.elements - self.nonfinite
        below, *counts, above = self.counts.tolist()
        return QuantityStats(
            elements=self.elements,
            nonfinite=self.nonfinite,
            rms=math.sqrt(self.square_sum / finite) if finite else None,
            max=self.max if finite else None,
            histogram=Histogram(tuple(counts), self.zeros, below, above),
        )


def scale_stats(scale: Tensor) -> ScaleStats:
    """Return the exact statistics of one moment's block scales."""
    values = scale.detach().cpu().reshape(-1).float().numpy()
    finite = values[np.isfinite(values)]
    return ScaleStats(
        blocks=values.size,
        nonfinite=values.size - finite.size,
        min=float(finite.min()) if finite.size else None,
        median=float(np.median(finite.astype(np.float64))) if finite.size else None,
        max=float(finite.max()) if finite.size else None,
    )


class Scales:
    """Collects the `ScaleStats` of many moments without keeping their scales."""

    def __init__(self) -> None:
        self.blocks = 0
        self.nonfinite = 0
        self.min = math.inf
        self.max = -math.inf
        self.bins: Counts = np.zeros(1 << (31 - _MEDIAN_SHIFT), dtype=np.int64)

    def add(self, scale: Tensor, exact: ScaleStats) -> None:
        """Take in one moment's scales and their statistics."""
        self.blocks += exact.blocks
        self.nonfinite += exact.nonfinite
        if exact.min is None or exact.max is None:
            return
        self.min, self.max = min(self.min, exact.min), max(self.max, exact.max)
        values = scale.detach().cpu().reshape(-1).float()
        # The bit patterns of non-negative floats are in the order of the floats.
        bits = values[torch.isfinite(values)].clamp_(min=0.0).view(torch.int32).numpy()
        index, counts = np.unique(bits >> _MEDIAN_SHIFT, return_counts=True)
        self.bins[index] += counts

    def result(self) -> ScaleStats:
        """Return what was collected."""
        finite = self.blocks - self.nonfinite
        if not finite:
            return ScaleStats(self.blocks, self.nonfinite, None, None, None)
        ranks = [(finite - 1) // 2, finite // 2]
        low, high = (
            self._edge(int(i)) for i in np.searchsorted(self.bins.cumsum(), ranks, "right")
        )
        return ScaleStats(self.blocks, self.nonfinite, self.min, (low + high) / 2, self.max)

    def _edge(self, index: int) -> float:
        edge = (np.array([index], dtype=np.int32) << _MEDIAN_SHIFT).view(np.float32)
        return min(max(float(edge[0]), self.min), self.max)


class Moment:
    """Collects the `MomentStats` of one moment of one parameter, or of all."""

    def __init__(self, name: str, *codecs: str) -> None:
        self.name = name
        self.codecs = set(codecs)
        self.value = Quantity()
        self.zeros = 0
        self.saturated = 0
        self.codes: Counts | None = None

    def add(self, tile: MomentTile) -> None:
        """Take in a tile."""
        self.value.add(tile.values)
        codes = tile.codes
        if codes is None:
            self.zeros += int(np.count_nonzero(tile.values == 0.0))
            return
        index = codes.to(torch.int64).bitwise_and_(CODE_BINS - 1).numpy()
        counts = np.bincount(index, minlength=CODE_BINS)
        zero, top = _zero_and_top(tile.codec, codes.dtype)
        self.zeros += int(counts[zero].sum())
        self.saturated += int(counts[top].sum())
        self._code_counts()[:] += counts

    def _code_counts(self) -> Counts:
        if self.codes is None:
            self.codes = np.zeros(CODE_BINS, dtype=np.int64)
        return self.codes

    def merge(self, other: Moment) -> None:
        """Take in the same moment of a parameter."""
        self.codecs |= other.codecs
        self.value.merge(other.value)
        self.zeros += other.zeros
        self.saturated += other.saturated
        if other.codes is not None:
            self._code_counts()[:] += other.codes

    def result(self, scale: ScaleStats | None) -> MomentStats:
        """Return what was collected."""
        elements = self.value.elements
        coded = 0 if self.codes is None else int(self.codes.sum())
        return MomentStats(
            moment=self.name,
            codec="+".join(sorted(self.codecs)),
            value=self.value.result(),
            scale=scale,
            zero_share=self.zeros / elements if elements else None,
            saturated_share=self.saturated / coded if coded else None,
            entropy_bits=_entropy_bits(self.codes) if self.codes is not None and coded else None,
        )


@lru_cache(maxsize=64)
def _zero_and_top(codec: Codec, dtype: torch.dtype) -> tuple[Counts, Counts]:
    """Return the bins of zero codes and of those at the end of a codec's grid."""
    size = codec.magnitudes(torch.arange(CODE_BINS).to(dtype)).numpy()
    return np.flatnonzero(size == 0), np.flatnonzero(size == codec.top_code)


def _entropy_bits(counts: Counts) -> float:
    share = counts[counts > 0] / counts.sum()
    # A single code gives -0.0 otherwise.
    return abs(float(-(share * np.log2(share)).sum()))
