"""Every rule of the catalog keeps the promises of a rule."""

from typing import ClassVar

import torch

from luma_core import catalog
from luma_core.codecs import Partition, SegmentMean
from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule
from luma_core.rules.lion import LionRule
from luma_core.rules.muon import MuonRule
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


class TestMuon(RuleConformance):
    rule = MuonRule()
    parameter_error = (1e-5, 2e-4)  # The update is rounded to bfloat16.
    group: ClassVar = {
        "lr": LR,
        "momentum": BETA1,
        "nesterov": True,
        "weight_decay": DECAY,
        "maximize": False,
        "ns_coefficients": "polar_express",
        "ns_steps": 8,
        "ns_eps": 1e-7,
        "ns_dtype": "float32",
        "adjust_lr_fn": "match_rms_adamw",
        "split_rows": None,
        "neuron_beta2": None,
    }

    def reference(self, param, grad, moments, step):
        new = BETA1 * moments["momentum_buffer"] + (1 - BETA1) * grad
        u, _, v = torch.linalg.svd(
            (BETA1 * new + (1 - BETA1) * grad).bfloat16().double(), full_matrices=False
        )
        scale = 0.2 * max(SHAPE) ** 0.5
        return param * (1 - LR * DECAY) - LR * scale * (u @ v), {"momentum_buffer": new}


def test_every_rule_of_the_catalog_has_a_suite() -> None:
    suites = (TestAdamW, TestAdamMini, TestLAMB, TestLion, TestMuon)
    tried = {type(suite.rule) for suite in suites}
    assert tried == {catalog.import_home(entry.rule) for entry in catalog.ALGORITHMS}
