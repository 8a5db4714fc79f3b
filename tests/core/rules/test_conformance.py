"""Every rule of the catalog keeps the promises of a rule."""

import math
from typing import ClassVar

import torch

from luma_core import catalog
from luma_core.codecs import Partition, SegmentMean
from luma_core.rules import AdamMiniRule, AdamWRule, LAMBRule
from luma_core.rules.adam import AdamRule
from luma_core.rules.lion import LionRule
from luma_core.rules.muon import MuonRule
from luma_core.rules.nadamw import NAdamWRule
from luma_core.rules.qhadamw import QHAdamWRule
from luma_core.rules.radam import RAdamRule
from luma_core.testing.rule import SHAPE, RuleConformance

BETA1, BETA2, EPS, LR, DECAY = 0.9, 0.99, 1e-8, 2.0**-6, 0.1


class AdamSuite(RuleConformance):
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


class TestAdamW(AdamSuite):
    rule = AdamWRule()


class TestAdamMini(AdamSuite):
    rule = AdamMiniRule()
    skips_with_scale = False

    def codecs(self, storage, block_size=128):
        by_row = SegmentMean(partition=Partition.rows(SHAPE))
        return {**super().codecs(storage, block_size), "exp_avg_sq": by_row}

    def square(self, grad):
        return grad.square().mean(dim=1, keepdim=True).expand_as(grad)


class TestLAMB(AdamSuite):
    rule = LAMBRule()
    group: ClassVar = {
        **AdamSuite.group,
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


class TestAdam(AdamSuite):
    rule = AdamRule()
    group: ClassVar = {**AdamSuite.group, "decoupled_weight_decay": False}

    def reference(self, param, grad, moments, step):
        update, new = self.adam(grad + DECAY * param, moments, step)
        return param - LR * update, new


class TestRAdam(AdamSuite):
    rule = RAdamRule()
    group: ClassVar = {**AdamSuite.group, "decoupled_weight_decay": True}

    def reference(self, param, grad, moments, step):
        # Neither the first step nor the third is rectified.
        _, new = self.adam(grad, moments, step)
        update = new["exp_avg"] / (1 - BETA1**step)
        return param * (1 - LR * DECAY) - LR * update, new


class TestNAdamW(AdamSuite):
    rule = NAdamWRule()
    group: ClassVar = {**AdamSuite.group, "momentum_decay": None}

    def reference(self, param, grad, moments, step):
        _, new = self.adam(grad, moments, step)
        mixed = BETA1 * new["exp_avg"] + (1 - BETA1) * grad
        update = mixed / (1 - BETA1**step) / ((new["exp_avg_sq"] / (1 - BETA2**step)).sqrt() + EPS)
        return param * (1 - LR * DECAY) - LR * update, new


class TestScheduledNAdamW(AdamSuite):
    rule = NAdamWRule()
    group: ClassVar = {**AdamSuite.group, "momentum_decay": 0.02}

    def reference(self, param, grad, moments, step):
        _, new = self.adam(grad, moments, step)
        mu = [BETA1 * (1 - 0.5 * 0.96 ** (t * 0.02)) for t in range(1, step + 2)]
        now, following = math.prod(mu[:-1]), math.prod(mu)
        mixed = (1 - mu[-2]) / (1 - now) * grad + mu[-1] / (1 - following) * new["exp_avg"]
        update = mixed / ((new["exp_avg_sq"] / (1 - BETA2**step)).sqrt() + EPS)
        return param * (1 - LR * DECAY) - LR * update, new


class TestQHAdamW(AdamSuite):
    rule = QHAdamWRule()
    group: ClassVar = {**AdamSuite.group, "nus": (0.7, 0.6)}

    def reference(self, param, grad, moments, step):
        _, new = self.adam(grad, moments, step)
        mixed = 0.7 * new["exp_avg"] / (1 - BETA1**step) + 0.3 * grad
        square = 0.6 * new["exp_avg_sq"] / (1 - BETA2**step) + 0.4 * grad.square()
        return param * (1 - LR * DECAY) - LR * mixed / (square.sqrt() + EPS), new


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
    suites = (
        *(TestAdamW, TestAdamMini, TestLAMB, TestLion, TestMuon),
        *(TestAdam, TestRAdam, TestNAdamW, TestQHAdamW),
    )
    tried = {type(suite.rule) for suite in suites}
    assert tried == {catalog.import_home(entry.rule) for entry in catalog.ALGORITHMS}
