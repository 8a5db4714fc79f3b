"""Codecs as device functions: compile-time parameters of the step kernels.

Each codec is two functions of one signature, so that a rule's kernel takes any of them:

- ``decode(raw, exponent, MANTISSA, OCTAVES)``: stored values and block exponents to float32;
- ``encode(x, root, exponent, bits, MANTISSA, OCTAVES)``: float32 to stored values. ``root`` is
  ``sqrt(x)`` where the moment is a second moment, and ``bits`` 32 random bits per element, uint32.

A magnitude code shifted to the place of a float32's exponent and mantissa is the float32 of that
magnitude times a power of two, and its linear octave falls on the subnormal numbers. So decoding is
a shift and multiplications by powers of two; coding is the reverse with noise added in between.
"""

import triton
import triton.language as tl

SMALLEST_CODE = tl.constexpr(512)


@triton.jit
def fit_exponent(largest, OCTAVES: tl.constexpr):
    """Return the stored exponents, int32, of blocks: `luma_core.codecs.loggrid.LogGrid.fit`."""
    bits = largest.to(tl.int32, bitcast=True)
    stored = ((bits - 1) >> 23) - OCTAVES
    stored = tl.minimum(tl.maximum(stored, 0), 254 - OCTAVES)
    return tl.where((bits & 0x7F800000) == 0x7F800000, 254, stored)


@triton.jit
def _unit(exponent, OCTAVES: tl.constexpr):
    """Return ``2**(E - 15)``, or infinity for blocks that are not finite."""
    unit = ((exponent + (OCTAVES - 14)) << 23).to(tl.float32, bitcast=True)
    return tl.where(exponent == 254, float("inf"), unit)


@triton.jit
def _per_unit(exponent, OCTAVES: tl.constexpr):
    """Return ``2**(15 - E)``, or 0 for blocks that are not finite."""
    return (tl.maximum(268 - OCTAVES - exponent, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def grid_decode(code, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the magnitudes of codes, int32 or uint32: `LogGrid.decode`."""
    shift: tl.constexpr = 2.0 ** (141 - OCTAVES)
    value = (code << (23 - MANTISSA)).to(tl.float32, bitcast=True)
    return (value * shift) * _unit(exponent, OCTAVES)


@triton.jit
def grid_encode(x, exponent, noise, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the codes of magnitudes, uint32: `LogGrid.encode`.

    ``noise`` has ``23 - MANTISSA`` random bits, uint32.
    """
    shift: tl.constexpr = 2.0 ** (OCTAVES - 141)
    value = (x * _per_unit(exponent, OCTAVES)) * shift
    return (value.to(tl.uint32, bitcast=True) + noise) >> (23 - MANTISSA)


@triton.jit
def luma16_m_decode(raw, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the first moment of codes."""
    if MANTISSA == 10:
        return raw.to(tl.float16, bitcast=True).to(tl.float32) * _unit(exponent, OCTAVES)
    code = raw.to(tl.int32)
    size = grid_decode(code & 0x7FFF, exponent, MANTISSA, OCTAVES)
    return tl.where(code < 0, -size, size)


@triton.jit
def luma16_m_encode(x, root, exponent, bits, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the codes of the first moment."""
    noise = (bits & 0xFFFF) >> (MANTISSA - 7)
    code = grid_encode(tl.abs(x), exponent, noise, MANTISSA, OCTAVES)
    sign = (x.to(tl.uint32, bitcast=True) >> 16) & 0x8000
    return (code | sign).to(tl.int16)


@triton.jit
def luma16_v_decode(raw, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the second moment of codes of its root."""
    root = grid_decode(raw.to(tl.int32) & 0xFFFF, exponent, MANTISSA, OCTAVES)
    return root * root


@triton.jit
def luma16_v_encode(x, root, exponent, bits, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the codes of the second moment's root."""
    code = grid_encode(root, exponent, bits >> (MANTISSA + 9), MANTISSA, OCTAVES)
    # The bits of a root above 0 are larger than any code; those of 0 are 0. The other bound of
    # `Luma16V.lowest_code` matters for subnormal numbers alone.
    lowest = tl.minimum(root.to(tl.uint32, bitcast=True), SMALLEST_CODE)
    return tl.maximum(code, lowest).to(tl.int16)


@triton.jit
def plain_decode(raw, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return float32 state as it is."""
    return raw


@triton.jit
def plain_encode(x, root, exponent, bits, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return float32 state as it is."""
    return x
