"""Lion's formulas, as `schedules/one_pass.py` takes them."""

import triton
import triton.language as tl


@triton.jit
def lion_moments(grad, m, v, numbers):
    """Return Lion's new moment and, as the third value, what its update is the sign of."""
    mixed = tl.fma(grad - m, numbers.new_share, m)
    m = tl.fma(grad - m, numbers.new_share2, m)
    return m, m, mixed


@triton.jit
def lion_update(
    m,
    root,
    third,
    numbers,
    limit,
    COARSE: tl.constexpr,
    SKIP: tl.constexpr,
    FAST: tl.constexpr,
):
    """Return the sign of ``third``, which is 0 of 0 and of NaN: `luma_core.rules.lion`."""
    return (third > 0).to(tl.float32) - (third < 0).to(tl.float32)
