"""Differences of stored elements: small ones, of either sign, become small unsigned numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = import_later("numpy", globals())


Bytes: TypeAlias = "npt.NDArray[np.uint8]"


def difference(raw: Bytes, base: Bytes, itemsize: int) -> Bytes:
    """Return the zigzag difference of elements to those of a base.

    Elements are unsigned integers of ``itemsize`` bytes, whatever they mean, and subtraction is
    modulo ``2**(8 * itemsize)``. With the difference *d* as a signed number, the result is *2d*
    where *d* is 0 or more and *-2d - 1* where it is negative.

    Args:
        raw: 1-D bytes of whole elements, little endian.
        base: as many.
        itemsize: 1, 2, 4 or 8.
    """
    unsigned = _dtype(itemsize)
    found = raw.view(unsigned) - base.view(unsigned)
    # An arithmetic shift fills the element with its sign.
    signs = found.view(f"<i{itemsize}") >> (8 * itemsize - 1)
    found <<= 1
    found ^= signs.view(unsigned)
    return found.view(np.uint8)


def add_difference(coded: Bytes, out: Bytes, itemsize: int) -> None:
    """Turn the elements of a base into those that `difference` was given, in place.

    Args:
        coded: what `difference` returned; overwritten.
        out: 1-D bytes of the base's elements.
        itemsize: 1, 2, 4 or 8.
    """
    found = coded.view(_dtype(itemsize))
    signs = found & 1
    np.negative(signs, out=signs)
    found >>= 1
    found ^= signs
    values = out.view(_dtype(itemsize))
    values += found


def _dtype(itemsize: int) -> np.dtype[np.unsignedinteger[npt.NBitBase]]:
    return np.dtype(f"<u{itemsize}")
