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
def correct_sqrt(x, FAST: tl.constexpr):
    """Return the correctly rounded square root of float32 ``x``, of normal numbers if ``FAST``.

    One step of Newton's method from the approximate root.
    """
    if FAST:
        near = sqrt(x, FAST)
        half = 0.5 * reciprocal(near, FAST)
        # Zero and infinity make NaN here, and are their own roots.
        better = tl.fma(tl.fma(-near, near, x), half, near)
        root = tl.where(better == better, better, x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """Return one over float32 ``x``."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def saturated(x, factor, addend, FAST: tl.constexpr):
    """Return float32 ``x * factor + addend``, limited to 0 to 1; 0 where that is NaN."""
    if FAST:
        addend = tl.zeros_like(x) + addend
        return tl.inline_asm_elementwise(
            "fma.rn.sat.ftz.f32 $0, $1, $2, $3;",
            "=f,f,f,f",
            [x, factor, addend],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    value = tl.fma(x, factor, addend)
    return tl.where(value > 0, tl.minimum(value, 1.0), 0.0)
