"""The codec ``("fp8_e4m3", mantissa bits, octaves)`` as device functions."""

import triton
import triton.language as tl

from luma_kernels.triton.codecs.log_grid import grid_decode, grid_encode


@triton.jit
def fp8_e4m3_decode(raw, exponent, C: tl.constexpr):
    """Return the values of E4M3 codes."""
    code = raw.to(tl.int32)
    size = grid_decode(code & 0x7F, exponent, C[1], C[2])
    return tl.where(code > 127, -size, size)


@triton.jit
def fp8_e4m3_encode(x, exponent, bits, C: tl.constexpr):
    """Return E4M3 codes; 16 random bits and one half below them make the 20 that are cut off."""
    noise = ((bits & 0xFFFF) << 4) + 8
    code = grid_encode(tl.abs(x), exponent, noise, C[1], C[2])
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8)
