"""Update rules: one file each, on float32 values, without knowledge of codecs."""

from luma_core.optim.rules.adam_mini import AdamMiniRule
from luma_core.optim.rules.adamw import AdamWHyper, AdamWRule
from luma_core.optim.rules.base import ParameterStep, Rule, StoredMoment
from luma_core.optim.rules.elementwise import ElementwiseRule
from luma_core.optim.rules.lamb import LAMBHyper, LAMBRule

__all__ = [
    "AdamMiniRule",
    "AdamWHyper",
    "AdamWRule",
    "ElementwiseRule",
    "LAMBHyper",
    "LAMBRule",
    "ParameterStep",
    "Rule",
    "StoredMoment",
]
