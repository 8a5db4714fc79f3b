"""Which rules have fused steps."""

from functools import partial

from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule, Rule
from luma_core.rules.lion import LionRule
from luma_kernels.triton.rules.lion import lion_moments, lion_update
from luma_kernels.triton.runtime.plan import one_moment_option_row
from luma_kernels.triton.schedules.adam_mini_launch import ADAM_MINI
from luma_kernels.triton.schedules.one_pass_launch import (
    ADAMW,
    RuleKernels,
    adamw_prepare,
    elementwise_passes,
)
from luma_kernels.triton.schedules.reduce_apply_launch import LAMB

KERNELS: dict[type[Rule], RuleKernels] = {
    AdamWRule: ADAMW,
    AdamMiniRule: ADAM_MINI,
    LAMBRule: LAMB,
    LionRule: RuleKernels(
        one_moment_option_row,
        adamw_prepare,
        partial(elementwise_passes, lion_moments, lion_update),
    ),
}
