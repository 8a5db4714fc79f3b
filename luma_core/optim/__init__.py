"""Optimizers whose state is compressed: rules, their base and their backends."""

from luma_core.optim.adamw import AdamWHyper, AdamWRule
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.luma import LUMA, luma_codecs

__all__ = ["LUMA", "AdamWHyper", "AdamWRule", "CompressedOptimizer", "luma_codecs"]
