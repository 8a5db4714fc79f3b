"""Which rules have fused steps."""

from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule, Rule
from luma_kernels.triton.schedules.adam_mini_launch import ADAM_MINI
from luma_kernels.triton.schedules.one_pass_launch import ADAMW, RuleKernels
from luma_kernels.triton.schedules.reduce_apply_launch import LAMB

KERNELS: dict[type[Rule], RuleKernels] = {
    AdamWRule: ADAMW,
    AdamMiniRule: ADAM_MINI,
    LAMBRule: LAMB,
}
