"""The formulas of rules that work element by element, as `schedules/one_pass.py` takes them."""

import triton
import triton.language as tl

from luma_kernels.triton.runtime.fastmath import reciprocal
from luma_kernels.triton.runtime.tables import bounded


@triton.jit
def adamw_moments(grad, m, v, numbers):
    """Return Adam's new moments: `luma_core.rules.adamw.running_averages`."""
    m = tl.fma(grad - m, numbers.new_share, m)
    v = tl.fma(grad, grad * numbers.new_share2, v * numbers.beta2)
    return m, v, m


@triton.jit
def adamw_update(
    m,
    root,
    third,
    numbers,
    limit,
    COARSE: tl.constexpr,
    SKIP: tl.constexpr,
    FAST: tl.constexpr,
):
    """Return Adam's update: `luma_core.rules.adamw.AdamWRule`."""
    update = m * reciprocal(tl.fma(root, numbers.root_factor, numbers.eps), FAST)
    return bounded(update, limit, SKIP) if COARSE else update
