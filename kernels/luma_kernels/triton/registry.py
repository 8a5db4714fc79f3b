"""Which rules have fused steps."""

from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule, Rule
from luma_kernels.triton.lamb_passes import LAMB
from luma_kernels.triton.mini_rule import ADAM_MINI
from luma_kernels.triton.passes import ADAMW, RuleKernels

KERNELS: dict[type[Rule], RuleKernels] = {
    AdamWRule: ADAMW,
    AdamMiniRule: ADAM_MINI,
    LAMBRule: LAMB,
}
