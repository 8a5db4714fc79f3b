"""The library's steps of Adam's relatives do what the rules say, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from luma_core import Adam, NAdamW, QHAdamW, RAdam
from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.rules.adam import AdamRule
from luma_core.rules.adam_family import AdamFamilyRule
from luma_core.rules.nadamw import NAdamWRule
from luma_core.rules.qhadamw import QHAdamWRule
from luma_core.rules.radam import RAdamRule
from luma_kernels import cpu

from .conftest import assert_same_bits, clone, make_step, separate_family_rule
from .test_plan import train

pytestmark = pytest.mark.usefixtures("exact_roots", "separate_operations")

RULES: dict[str, tuple[type[AdamFamilyRule], dict[str, Any]]] = {
    "adam": (AdamRule, {"decoupled_weight_decay": False}),
    "adam-decoupled": (AdamRule, {"decoupled_weight_decay": True, "maximize": True}),
    "radam-first": (RAdamRule, {"decoupled_weight_decay": False, "maximize": True}),
    "radam": (RAdamRule, {"decoupled_weight_decay": True, "step": 9}),
    "nadamw": (NAdamWRule, {"momentum_decay": None}),
    "nadamw-scheduled": (NAdamWRule, {"momentum_decay": 4e-3}),
    "qhadamw": (QHAdamWRule, {"nus": (0.7, 1.0)}),
    "qhadamw-mixed": (QHAdamWRule, {"nus": (0.7, 0.6), "maximize": True}),
}
every_rule = pytest.mark.parametrize(("rule", "options"), RULES.values(), ids=RULES.keys())
FIRST: list[Codec] = [FP32(), BF16(), Luma16M(), FP8E4M3(), TableM(bits=3)]
SECOND: list[Codec] = [FP32(), BF16(), RootV(bits=2, floor=0.25), LogV(bits=5)]
PAIRS = [(Luma16M(), Luma16V()), *((m, v) for m in FIRST for v in SECOND)]
LUMA = PAIRS[0]
LONG = (Luma16M(block_size=2056), Luma16V(block_size=2056))
WHOLE = [(codec(block_size=None), other(block_size=None)) for codec, other in ((FP32, FP32),)]
WHOLE += [(Luma16M(block_size=None), Luma16V(block_size=None))]


def check(kind: type[AdamFamilyRule], pair: tuple[Codec, Codec], **options: Any) -> None:
    codecs = dict(zip(("exp_avg", "exp_avg_sq"), pair, strict=True))
    shape = options.pop("shape", (5, 300))
    bad = options.pop("bad", None)
    rule, count = kind(), options.pop("step", 3)
    item = make_step(shape, codecs, step=count)
    group = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "maximize": False}
    dtype = options.pop("dtype", torch.float32)
    coarse = any(codec.coarse for codec in pair)
    hyper = rule.hyper({**group, **options}, count, coarse=coarse)
    item = replace(item, hyper=hyper, param=item.param.to(dtype))
    if bad is not None:
        item.grad.view(-1)[7] = bad
    expected = clone(item)
    assert not cpu.unsupported_step(rule, item)
    found = cpu.step_parameter(item)
    assert int(found) == int(separate_family_rule(kind).step_parameter(expected))
    assert_same_bits(item, expected)


@every_rule
def test_all_pairs_of_codecs_have_the_bits_of_the_rule(
    rule: type[AdamFamilyRule], options: dict[str, Any]
) -> None:
    for pair in (*PAIRS, *WHOLE, LONG):
        check(rule, pair, **options)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (129,), (7, 31), (3, 2048), (70, 4, 40)])
def test_odd_sizes_and_dtypes_have_the_bits_of_the_rule(
    rule: type[AdamFamilyRule], options: dict[str, Any], shape: Any, dtype: torch.dtype
) -> None:
    for pair in (LUMA, (TableM(bits=3), LogV(bits=5))):
        check(rule, pair, shape=shape, dtype=dtype, **options)


@every_rule
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_skipped_alike(
    rule: type[AdamFamilyRule], options: dict[str, Any], bad: float
) -> None:
    for pair in (LUMA, (FP32(), FP32()), *WHOLE):
        check(rule, pair, bad=bad, **options)


@pytest.mark.parametrize("kind", [Adam, RAdam, NAdamW, QHAdamW])
def test_planned_steps_are_those_of_pytorch(kind: Any) -> None:
    def build(backend: str) -> Any:
        return partial(kind, lr=1e-2, weight_decay=0.1, codec="fp32", backend=backend)

    planned, eager = train(build("auto")), train(build("pytorch"))
    for name, value in planned.items():
        if value.dtype == torch.float32:
            torch.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-6)
        elif not value.is_floating_point():
            assert torch.equal(value, eager[name]), name
