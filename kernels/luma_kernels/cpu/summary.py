"""Launchers of what statistics add up."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from luma_kernels.cpu.library import native_library

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

_LANES = 32
"""``kLanes`` of `src/summary.h`."""


class Octaves(Protocol):
    """The slots of float32 or float64 magnitudes: `luma_core.stats.bins.Octaves`."""

    @property
    def first_slot(self) -> npt.NDArray[np.int32]:
        """Slot of the smallest magnitude of each exponent."""
        ...

    @property
    def edges(self) -> npt.NDArray[np.signedinteger]:
        """Bits of the magnitude from which on the next slot follows."""
        ...


class Summary(Structure):
    """Of `src/summary.h`."""

    _fields_: ClassVar = [
        ("first", c_void_p),
        ("second", c_void_p),
        ("count", c_int64),
        ("correction1", c_double),
        ("correction2", c_double),
        ("eps", c_double),
        ("first_slot", c_void_p),
        ("edges", c_void_p),
        ("slots", c_void_p),
        ("lanes", c_void_p),
        ("largest", c_void_p),
    ]


def summarize(
    first: Floats,
    octaves: Octaves,
    slots: Counts,
    *,
    second: Floats | None = None,
    corrections: tuple[float, float] = (1.0, 1.0),
    eps: float = 0.0,
    instruction_set: str | None = None,
) -> tuple[npt.NDArray[np.float64], float]:
    """Sort magnitudes into slots, in one thread; return 32 sums of squares and the largest one.

    The square of element i is in sum ``i % 32``. Sums and largest are of finite magnitudes only.

    Args:
        first: values, contiguous.
        octaves: slots of float32; of float64 with ``second``.
        slots: 84 counts, which are added to.
        second: as many values; then ``first / c1 / (sqrt(second / c2) + eps)`` is summarized, in
            float64.
        corrections: ``c1`` and ``c2``.
        eps: added to the root.
        instruction_set: one of the library's; the fastest by default.

    Raises:
        BackendUnavailableError: there is no library.
    """
    lanes, largest = np.zeros(_LANES), np.zeros(1)
    summary = Summary(
        first.ctypes.data,
        None if second is None else second.ctypes.data,
        first.size,
        *corrections,
        eps,
        octaves.first_slot.ctypes.data,
        octaves.edges.ctypes.data,
        slots.ctypes.data,
        lanes.ctypes.data,
        largest.ctypes.data,
    )
    native_library().summarize(summary, instruction_set)
    return lanes, float(largest[0])


def count_codes(
    codes: npt.NDArray[np.int16],
    counts: npt.NDArray[np.uint32],
    *,
    instruction_set: str | None = None,
) -> None:
    """Add how often each of the 65,536 codes occurs to ``counts``, in one thread.

    Args:
        codes: stored codes, contiguous.
        counts: by the code's 16 bits.
        instruction_set: one of the library's; the fastest by default.

    Raises:
        BackendUnavailableError: there is no library.
    """
    native_library().count_codes(codes.ctypes.data, codes.size, counts.ctypes.data, instruction_set)
