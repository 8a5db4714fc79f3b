"""Every rule of the catalog keeps the promises of a rule."""

from typing import ClassVar

from luma_core import catalog
from luma_core.codecs import Partition, SegmentMean
from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule
from luma_core.rules.lion import LionRule
from luma_core.testing.rule import SHAPE, RuleConformance

BETA1, BETA2, EPS, LR, DECAY = 0.9, 0.99, 1e-8, 2.0**-6, 0.1


class AdamRule(RuleConformance):
    group: ClassVar = {
        "lr": LR,
        "betas": (BETA1, BETA2),
        "eps": EPS,
        "weight_decay": DECAY,
        "maximize": False,
    }

    def square(self, grad):
        return grad.square()

    def adam(self, grad, moments, step):
        m = BETA1 * moments["exp_avg"] + (1 - BETA1) * grad
        v = BETA2 * moments["exp_avg_sq"] + (1 - BETA2) * self.square(grad)
        update = m / (1 - BETA1**step) / ((v / (1 - BETA2**step)).sqrt() + EPS)
        return update, {"exp_avg": m, "exp_avg_sq": v}

    def reference(self, param, grad, moments, step):
        update, new = self.adam(grad, moments, step)
        return param * (1 - LR * DECAY) - LR * update, new


class TestAdamW(AdamRule):
    rule = AdamWRule()


class TestAdamMini(AdamRule):
    rule = AdamMiniRule()
    skips_with_scale = False

    def codecs(self, storage, block_size=128):
        by_row = SegmentMean(partition=Partition.rows(SHAPE))
        return {**super().codecs(storage, block_size), "exp_avg_sq": by_row}

    def square(self, grad):
        return grad.square().mean(dim=1, keepdim=True).expand_as(grad)


class TestLAMB(AdamRule):
    rule = LAMBRule()
    group: ClassVar = {
        **AdamRule.group,
        "bias_correction": True,
        "always_adapt": False,
        "trust_clip": False,
    }

    def reference(self, param, grad, moments, step):
        update, new = self.adam(grad, moments, step)
        update = update + DECAY * param
        return param - LR * param.norm() / update.norm() * update, new


class TestLion(RuleConformance):
    rule = LionRule()
    group: ClassVar = {"lr": LR, "betas": (BETA1, BETA2), "weight_decay": DECAY, "maximize": False}

    def reference(self, param, grad, moments, step):
        m = moments["exp_avg"]
        update = (BETA1 * m + (1 - BETA1) * grad).sign()
        new = {"exp_avg": BETA2 * m + (1 - BETA2) * grad}
        return param * (1 - LR * DECAY) - LR * update, new


def test_every_rule_of_the_catalog_has_a_suite() -> None:
    suites = (TestAdamW, TestAdamMini, TestLAMB, TestLion)
    tried = {type(suite.rule) for suite in suites}
    assert tried == {catalog.import_home(entry.rule) for entry in catalog.ALGORITHMS}
