"""Roots and reciprocals by the approximate units of NVIDIA GPUs, or plainly elsewhere.

The approximate instructions err by about one unit in the last place and flush numbers below
1.2e-38 to zero; the exact ones take several times as many instructions. ``FAST`` is a compile-time
parameter because inline assembly exists neither in the interpreter nor on other GPUs.
"""

import triton
import triton.language as tl


@triton.jit
def sqrt(x, FAST: tl.constexpr):
    """Return the square root of float32 ``x``."""
    if FAST:
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.sqrt(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """Return one over float32 ``x``."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x
