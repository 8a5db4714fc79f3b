"""Codecs of first moments as device functions beside those of `log_grid.py`, of the same kind."""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.log_grid import grid_decode, grid_encode
from luma_kernels.triton.runtime.noise import to_bfloat16


@triton.jit
def bf16_decode(raw, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return bfloat16 state as float32."""
    return raw.to(tl.float32)


@triton.jit
def bf16_encode(x, root, exponent, bits, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return ``x`` rounded stochastically to bfloat16."""
    return to_bfloat16(x, bits & 0xFFFF)


@triton.jit
def fp8_e4m3_decode(raw, exponent, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the values of E4M3 codes."""
    code = raw.to(tl.int32)
    size = grid_decode(code & 0x7F, exponent, MANTISSA, OCTAVES)
    return tl.where(code > 127, -size, size)


@triton.jit
def fp8_e4m3_encode(x, root, exponent, bits, MANTISSA: tl.constexpr, OCTAVES: tl.constexpr):
    """Return E4M3 codes; 16 random bits and one half below them make the 20 that are cut off."""
    noise = ((bits & 0xFFFF) << 4) + 8
    code = grid_encode(tl.abs(x), exponent, noise, MANTISSA, OCTAVES)
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8)
