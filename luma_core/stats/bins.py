"""Where a magnitude lies in the histograms: slots, found from the bits of floats.

An octave, which is a factor of 2, is narrower than a bin, so it meets one edge at most: the
exponent's bits name the slot of the octave's smallest magnitude, and one comparison does the rest.
No logarithm is taken, so every backend counts the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from luma_core.stats.report import HISTOGRAM_BINS, HISTOGRAM_EDGES

Counts = npt.NDArray[np.int64]

ZERO, BELOW, FIRST = 0, 1, 2
"""Slots of zeros, of what is under the lowest edge, and of the first bin."""

ABOVE = FIRST + HISTOGRAM_BINS
NONFINITE = ABOVE + 1
SLOTS = NONFINITE + 1


@dataclass(frozen=True)
class Octaves:
    """The slots of one dtype's magnitudes.

    Attributes:
        mantissa_bits: bits of a magnitude below its exponent.
        first_slot: int32 slot of the smallest magnitude of each exponent.
        edges: bits of the magnitude from which on the next slot follows, in an integer dtype as
            wide as the floats; its largest value in octaves without an edge.
    """

    mantissa_bits: int
    first_slot: npt.NDArray[np.int32]
    edges: npt.NDArray[np.signedinteger]

    def slots(self, values: npt.NDArray[np.floating]) -> Counts:
        """Return how many of ``values``, float32 or float64, fall into each of the ``SLOTS``."""
        size = values.view(self.edges.dtype) & np.iinfo(self.edges.dtype).max
        octave = size >> self.mantissa_bits
        found = self.first_slot[octave] + (size >= self.edges[octave])
        return np.bincount(found, minlength=SLOTS)


@lru_cache(maxsize=2)
def octaves(bits: int) -> Octaves:
    """Return the slots of float32 or float64, by their bits."""
    floats, integers = (np.float32, np.int32) if bits == 32 else (np.float64, np.int64)
    info = np.finfo(floats)
    mantissa_bits = info.nmant
    count = 1 << info.nexp
    edges = np.array([_edge_bits(edge, floats, integers) for edge in HISTOGRAM_EDGES])
    lowest = np.arange(count, dtype=np.int64) << mantissa_bits
    first_slot = BELOW + np.searchsorted(edges, lowest, side="right")
    within = np.full(count, np.iinfo(integers).max, dtype=np.int64)
    within[edges >> mantissa_bits] = np.where(
        edges > lowest[edges >> mantissa_bits], edges, np.iinfo(integers).max
    )
    # Exponent 0 has zero and the subnormal numbers, the last one infinity and NaN.
    first_slot[0], within[0] = ZERO, 1
    first_slot[-1] = NONFINITE
    return Octaves(mantissa_bits, first_slot.astype(np.int32), within.astype(integers))


def _edge_bits(edge: float, floats: type[np.floating], integers: type[np.signedinteger]) -> int:
    """Return the bits of the smallest float that is not below ``10**edge``, found exactly."""
    square = Fraction(10) ** round(2 * edge)
    x = np.nextafter(floats(math.sqrt(square)), floats(0))
    while Fraction(float(x)) ** 2 < square:
        x = np.nextafter(x, floats(np.inf))
    return int(x.view(integers))
