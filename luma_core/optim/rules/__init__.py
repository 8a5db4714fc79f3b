"""Update rules: one file each, on float32 values, without knowledge of codecs."""

from luma_core.optim.rules.adamw import AdamWHyper, AdamWRule
from luma_core.optim.rules.base import ParameterStep, Rule, StoredMoment
from luma_core.optim.rules.elementwise import ElementwiseRule

__all__ = [
    "AdamWHyper",
    "AdamWRule",
    "ElementwiseRule",
    "ParameterStep",
    "Rule",
    "StoredMoment",
]
