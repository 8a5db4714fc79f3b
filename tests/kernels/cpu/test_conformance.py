"""The native library keeps the promises of a backend."""

import pytest

from luma_core.backends.native import NATIVE
from luma_core.codecs import SegmentMean
from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule
from luma_core.rules.adam import AdamRule
from luma_core.rules.adam_family import AdamFamilyRule
from luma_core.rules.lion import LionRule
from luma_core.testing.backend import BackendConformance

from .conftest import (
    SeparateLAMBRule,
    SeparateLionRule,
    SeparateRule,
    separate_family_rule,
)

SEPARATE = {AdamWRule: SeparateRule, LAMBRule: SeparateLAMBRule, LionRule: SeparateLionRule}


@pytest.mark.usefixtures("exact_roots", "separate_operations")
class TestNative(BackendConformance):
    backend = NATIVE

    def eager(self, rule, item):
        second = list(item.moments.values())[-1].codec
        if type(rule) is AdamMiniRule and not isinstance(second, SegmentMean):
            return SeparateRule()
        if isinstance(rule, AdamFamilyRule):
            return separate_family_rule(type(rule))
        return SEPARATE.get(type(rule), type(rule))()

    def test_it_has_kernels_of_these_rules(self):
        for rule in (AdamWRule(), LAMBRule(), AdamMiniRule(), AdamRule()):
            assert self.claimed(rule, (5, 300)), rule
