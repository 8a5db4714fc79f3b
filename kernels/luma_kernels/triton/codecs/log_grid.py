"""The logarithmic grid as device functions, and LUMA's 16-bit codecs, which are codes of it.

A magnitude code shifted to the place of a float32's exponent and mantissa is the float32 of that
magnitude times a power of two, and its linear octave falls on the subnormal numbers. So decoding is
a shift and multiplications by powers of two; coding is the reverse with noise added in between.

``C`` is the codec's tuple: its name, the mantissa bits of its grid and its octaves.
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
def grid_round_down_below(x, root, exponent, MANTISSA: tl.constexpr):
    """Round toward zero near zero: `LogGrid.round_down_below`."""
    steps: tl.constexpr = 2.0**MANTISSA
    unit = ((exponent + 1) << 23).to(tl.float32, bitcast=True)
    per_unit = (tl.maximum(253 - exponent, 0) << 23).to(tl.float32, bitcast=True)
    root = tl.zeros_like(x) + root
    below = (root >= 0.0) & (root < unit)
    below = below & (tl.abs(x) < 2.0 * unit) & (exponent < 254)
    inside = tl.where(below, x, 0.0)
    rounded = ((inside * per_unit) * steps).to(tl.int32).to(tl.float32) * (1.0 / steps) * unit
    return tl.where(below, rounded, x)


@triton.jit
def luma16_m_decode(raw, exponent, C: tl.constexpr):
    """Return the first moment of codes."""
    if C[1] == 10:
        return raw.to(tl.float16, bitcast=True).to(tl.float32) * _unit(exponent, C[2])
    code = raw.to(tl.int32)
    size = grid_decode(code & 0x7FFF, exponent, C[1], C[2])
    return tl.where(code < 0, -size, size)


@triton.jit
def luma16_m_encode(x, exponent, bits, C: tl.constexpr):
    """Return the codes of the first moment."""
    noise = (bits & 0xFFFF) >> (C[1] - 7)
    code = grid_encode(tl.abs(x), exponent, noise, C[1], C[2])
    sign = (x.to(tl.uint32, bitcast=True) >> 16) & 0x8000
    return (code | sign).to(tl.int16)


@triton.jit
def luma16_v_decode(raw, exponent, C: tl.constexpr):
    """Return the second moment of codes of its root."""
    root = grid_decode(raw.to(tl.int32) & 0xFFFF, exponent, C[1], C[2])
    return root * root


@triton.jit
def luma16_v_encode(root, exponent, bits, C: tl.constexpr):
    """Return the codes of the second moment's root."""
    code = grid_encode(root, exponent, bits >> (C[1] + 9), C[1], C[2])
    # The bits of a root above 0 are larger than any code; those of 0 are 0. The other bound of
    # `Luma16V.lowest_code` matters for subnormal numbers alone.
    lowest = tl.minimum(root.to(tl.uint32, bitcast=True), SMALLEST_CODE)
    return tl.maximum(code, lowest).to(tl.int16)
