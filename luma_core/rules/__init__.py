"""Update rules: one file each, on float32 values, without knowledge of codecs."""

from luma_core.rules.adam_mini import AdamMiniRule
from luma_core.rules.adamw import AdamWHyper, AdamWRule
from luma_core.rules.base import MomentKind, MomentSpec, ParameterStep, Rule, StoredMoment
from luma_core.rules.elementwise import ElementwiseRule
from luma_core.rules.lamb import LAMBHyper, LAMBRule

__all__ = [
    "AdamMiniRule",
    "AdamWHyper",
    "AdamWRule",
    "ElementwiseRule",
    "LAMBHyper",
    "LAMBRule",
    "MomentKind",
    "MomentSpec",
    "ParameterStep",
    "Rule",
    "StoredMoment",
]
