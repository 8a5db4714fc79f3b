"""Running sums over tiles; two of them merge into one, so totals come from parameters."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from luma_core.codecs import Codec
from luma_core.stats.bins import NONFINITE, SLOTS, ZERO, Counts
from luma_core.stats.measure import CODE_BINS, CodeCounts, Magnitudes, measure
from luma_core.stats.report import Histogram, MomentStats, QuantityStats, ScaleStats
from luma_core.stats.tiles import MomentTile


class Quantity:
    """Collects `QuantityStats`."""

    def __init__(self) -> None:
        self.slots: Counts = np.zeros(SLOTS, dtype=np.int64)
        self.square_sums: list[float] = []
        self.max = 0.0

    def add(self, run: Magnitudes) -> None:
        """Take in a run of values."""
        self.slots += run.slots
        self.square_sums.append(run.square_sum)
        self.max = max(self.max, run.largest)

    def merge(self, other: Quantity) -> None:
        """Take in another collection."""
        self.slots += other.slots
        self.square_sums += other.square_sums
        self.max = max(self.max, other.max)

    def result(self) -> QuantityStats:
        """Return what was collected."""
        elements, nonfinite = int(self.slots.sum()), int(self.slots[NONFINITE])
        finite = elements - nonfinite
        zeros, below, *counts, above = self.slots[:NONFINITE].tolist()
        return QuantityStats(
            elements=elements,
            nonfinite=nonfinite,
            # Exact sums: the order in which threads finish does not show.
            rms=math.sqrt(math.fsum(self.square_sums) / finite) if finite else None,
            max=self.max if finite else None,
            histogram=Histogram(tuple(counts), zeros, below, above),
        )


class MomentRun:
    """Collects some tiles of one moment of one parameter."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.value = Quantity()
        self.code_dtype: torch.dtype | None = None
        self._codes: CodeCounts | None = None

    def add(self, tile: MomentTile) -> None:
        """Take in a tile."""
        self.value.add(measure(tile.values))
        if tile.codes is None:
            return
        if self._codes is None:
            self._codes, self.code_dtype = CodeCounts(), tile.codes.dtype
        self._codes.add(tile.codes)

    def codes(self) -> tuple[Counts, torch.dtype] | None:
        """Return how often each code occurs, and the dtype of codes; None without codes."""
        if self._codes is None or self.code_dtype is None:
            return None
        return self._codes.flush(), self.code_dtype


class Moment:
    """Collects the `MomentStats` of one moment of one parameter, or of all."""

    def __init__(self, name: str, *codecs: str) -> None:
        self.name = name
        self.codecs = set(codecs)
        self.value = Quantity()
        self.zeros = 0
        self.saturated = 0
        self.codes: Counts | None = None

    def add(self, run: MomentRun) -> None:
        """Take in tiles."""
        self.value.merge(run.value)
        counted = run.codes()
        if counted is None:
            self.zeros += int(run.value.slots[ZERO])
            return
        counts, dtype = counted
        zero, top = _zero_and_top(run.codec, dtype)
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
        elements = int(self.value.slots.sum())
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
    size = codec.magnitudes(torch.arange(CODE_BINS, device="cpu").to(dtype)).numpy()
    return np.flatnonzero(size == 0), np.flatnonzero(size == codec.top_code)


def _entropy_bits(counts: Counts) -> float:
    share = counts[counts > 0] / counts.sum()
    # A single code gives -0.0 otherwise.
    return abs(float(-(share * np.log2(share)).sum()))
