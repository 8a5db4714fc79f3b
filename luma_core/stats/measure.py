"""What is added up of a run of values: natively where there is a library, else in numpy.

Both give the same bits. Squares are added in float64 in ``LANES`` sums, element i to sum
``i % LANES``, and these exactly (`math.fsum`), so neither the instruction set nor the number of
threads shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from luma_core.backends.native import native_cpu
from luma_core.rules.adamw import AdamFormula
from luma_core.rules.base import UpdateFormula, Values, Wide
from luma_core.stats.bins import NONFINITE, SLOTS, Counts, octaves

LANES = 32

CODE_BINS = 1 << 16


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes of a run of values.

    Attributes:
        slots: counts of `luma_core.stats.bins`.
        square_sum: sum of the finite squares.
        largest: largest finite one; 0 without any.
    """

    slots: Counts
    square_sum: float
    largest: float


def measure(values: Values) -> Magnitudes:
    """Return the magnitudes of float32 ``[elements]``."""
    cpu = native_cpu()
    if cpu is None:
        return _measure(values, octaves(32).slots(values))
    slots = np.zeros(SLOTS, dtype=np.int64)
    lanes, largest = cpu.summarize(values, octaves(32), slots)
    return Magnitudes(slots, math.fsum(lanes), largest)


def measure_update(formula: UpdateFormula, moments: Sequence[Values]) -> Magnitudes:
    """Return the magnitudes of the update of moments, each float32 ``[elements]``."""
    cpu = native_cpu()
    if cpu is None or not isinstance(formula, AdamFormula):
        update = formula.apply(*moments)
        return _measure(update, octaves(64).slots(update))
    slots = np.zeros(SLOTS, dtype=np.int64)
    first, second = moments
    lanes, largest = cpu.summarize(
        first,
        octaves(64),
        slots,
        second=second,
        corrections=(formula.correction1, formula.correction2),
        eps=formula.eps,
    )
    return Magnitudes(slots, math.fsum(lanes), largest)


def _measure(values: Values | Wide, slots: Counts) -> Magnitudes:
    if slots[NONFINITE]:
        values = np.where(np.isfinite(values), values, values.dtype.type(0))
    lanes = np.zeros((-(-values.size // LANES), LANES))
    lanes.reshape(-1)[: values.size] = values
    sums = np.square(lanes, out=lanes).sum(axis=0)
    return Magnitudes(slots, math.fsum(sums), float(np.abs(values).max(initial=0.0)))


class CodeCounts:
    """Counts how often each 16-bit code occurs."""

    def __init__(self) -> None:
        self.total: Counts = np.zeros(CODE_BINS, dtype=np.int64)
        self._part = np.zeros(CODE_BINS, dtype=np.uint32)
        self._room = np.iinfo(np.uint32).max

    def add(self, codes: Tensor) -> None:
        """Take in integer codes ``[elements]``, by their lowest 16 bits."""
        cpu = native_cpu()
        values = codes.numpy()
        if cpu is None or values.dtype != np.int16:
            index = values.astype(np.int64) & (CODE_BINS - 1)
            self.total += np.bincount(index, minlength=CODE_BINS)
            return
        if values.size > self._room:
            self.flush()
        cpu.count_codes(values, self._part)
        self._room -= values.size

    def flush(self) -> Counts:
        """Return all counts so far."""
        self.total += self._part
        self._part[:] = 0
        self._room = np.iinfo(np.uint32).max
        return self.total
