"""The noise of `luma_core.rounding` as device functions, in unsigned 32-bit arithmetic."""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """Return the 32-bit finaliser of ``x``, uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def random_bits(low, high, k0, k1):
    """Return 32 random bits per element, uint32.

    ``low`` and ``high`` are the words of the global element index, ``k0`` and ``k1`` the step's
    keys, all uint32.
    """
    x = low + k0
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ (k1 ^ (high * 0x9E3779B9))) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def third_draw(bits):
    """Return the 16 bits that round the parameter, uint32."""
    return (bits * 0x9E3779B1) >> 16


@triton.jit
def to_bfloat16(x, draw):
    """Round float32 stochastically to bfloat16, by bit arithmetic; NaN and infinities pass."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = tl.where(x == x, bits + draw, bits)
    return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
