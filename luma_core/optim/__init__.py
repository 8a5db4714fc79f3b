"""Optimizers whose state is compressed: rules, their base and their backends."""

from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.luma import LUMA, luma_codecs
from luma_core.optim.rules import AdamWHyper, AdamWRule

__all__ = ["LUMA", "AdamWHyper", "AdamWRule", "CompressedOptimizer", "luma_codecs"]
