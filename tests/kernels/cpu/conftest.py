"""Steps of every geometry and dtype, ready to be taken by either backend."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import BF16, FP32, Codec, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.rules import AdamWRule, LAMBHyper, LAMBRule, ParameterStep, Rule, StoredMoment
from luma_core.rules.adam_family import AdamFamilyRule
from luma_core.rules.lion import LionRule
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

if not cpu.native_status().available:
    collect_ignore_glob = ["test_*.py"]


class SeparateRule(AdamWRule):
    """AdamW with each operation rounded on its own, as the native kernels do.

    The rule itself leaves that to PyTorch, which fuses some of them where the CPU can.
    """

    def update(self, grad: Tensor, moments: Any, hyper: Any) -> tuple[dict[str, Tensor], Tensor]:
        new = self.averages(grad, moments, hyper)
        return new, self.update_of(new, hyper)

    @staticmethod
    def averages(grad: Tensor, moments: Any, hyper: Any) -> dict[str, Tensor]:
        if hyper.maximize:
            grad = -grad
        m, v = moments["exp_avg"], moments["exp_avg_sq"]
        weight = 1.0 - hyper.beta1
        difference = grad - m
        new = m + difference.mul_(weight) if weight < 0.5 else grad + difference.mul_(weight - 1.0)
        squares = (grad * (1.0 - hyper.beta2)).mul_(grad)
        return {"exp_avg": new, "exp_avg_sq": (v * hyper.beta2).add_(squares)}


def separate_family_rule(kind: type[AdamFamilyRule]) -> AdamFamilyRule:
    """Return a rule of Adam's family with each operation rounded on its own."""

    def averages(grad: Tensor, moments: Any, hyper: Any) -> dict[str, Tensor]:
        return SeparateRule.averages(grad, moments, replace(hyper, maximize=False))

    separate: type[AdamFamilyRule] = type(
        f"Separate{kind.__name__}", (kind,), {"averages": staticmethod(averages)}
    )
    return separate()


class SeparateLAMBRule(LAMBRule):
    """LAMB with each operation rounded on its own."""

    def update_moments(
        self, grad: Tensor, moments: Any, hyper: Any
    ) -> tuple[dict[str, Tensor], None]:
        return SeparateRule.averages(grad, moments, hyper), None

    def update(self, param: Tensor, moments: Any, hyper: LAMBHyper) -> Tensor:
        without = replace(hyper, weight_decay=0.0)
        return super().update(param, moments, without) + param * hyper.weight_decay


class SeparateLionRule(LionRule):
    """Lion with each operation rounded on its own."""

    def update(self, grad: Tensor, moments: Any, hyper: Any) -> tuple[dict[str, Tensor], Tensor]:
        grad = -grad if hyper.maximize else grad
        exp_avg = moments["exp_avg"]
        update = lerp(exp_avg, grad, 1.0 - hyper.beta1).sign_()
        return {"exp_avg": lerp(exp_avg, grad, 1.0 - hyper.beta2)}, update


def lerp(old: Tensor, new: Tensor, weight: float) -> Tensor:
    """Return what ``torch.lerp`` does, without fused operations."""
    difference = new - old
    return old + difference * weight if weight < 0.5 else new + difference * (weight - 1.0)


def luma_codecs(block_size: int | None, octaves: int | None = None) -> dict[str, Codec]:
    return {
        "exp_avg": Luma16M(block_size=block_size, octaves=octaves),
        "exp_avg_sq": Luma16V(block_size=block_size, octaves=octaves),
    }


def plain_codecs(block_size: int | None) -> dict[str, Codec]:
    return {name: FP32(block_size=block_size) for name in ("exp_avg", "exp_avg_sq")}


def bfloat16_codecs(block_size: int) -> dict[str, Codec]:
    return {name: BF16(block_size=block_size) for name in ("exp_avg", "exp_avg_sq")}


def packed_codecs(
    m_bits: int | None, v_bits: int | None, *, floor: float | None = None, block_size: int = 128
) -> dict[str, Codec]:
    """Return TurboAdam's codecs; ``None`` bits are float32, no floor is the logarithmic grid."""
    m: Codec = FP32(block_size=block_size)
    v: Codec = FP32(block_size=block_size)
    if m_bits is not None:
        m = TableM(bits=m_bits, block_size=block_size)
    if v_bits is not None:
        v = LogV(bits=v_bits, block_size=block_size)
        if floor is not None:
            v = RootV(bits=v_bits, floor=floor, block_size=block_size, rise=64)
    return {"exp_avg": m, "exp_avg_sq": v}


def make_step(
    shape: tuple[int, ...],
    codecs: dict[str, Codec],
    *,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 4.0,
    step: int = 3,
    skip_nonfinite: bool = True,
    stochastic_rounding: bool = True,
    **options: Any,
) -> ParameterStep:
    """Build a step from a state as training leaves it: magnitudes spread over many octaves."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        size = torch.randn(shape, generator=generator)
        return size * torch.exp2(torch.randn(shape, generator=generator) * spread)

    group = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "maximize": False,
        **options,
    }
    values = {"exp_avg": normal() * 0.1, "exp_avg_sq": (normal() * 0.1).square()}
    return ParameterStep(
        param=normal().to(dtype),
        grad=normal().to(grad_dtype),
        moments={
            name: StoredMoment(codec, codec.encode_tensor(values[name]))
            for name, codec in codecs.items()
        },
        hyper=AdamWRule().hyper(group, step, coarse=any(c.coarse for c in codecs.values())),
        keys=rounding.step_keys(seed * 7919 - 5, step),
        skip_nonfinite=skip_nonfinite,
        stochastic_rounding=stochastic_rounding,
    )


def clone(item: ParameterStep) -> ParameterStep:
    return replace(
        item,
        param=item.param.clone(),
        moments={
            name: replace(stored, fields=copy.deepcopy(stored.fields))
            for name, stored in item.moments.items()
        },
    )


def assert_like_eager(item: ParameterStep) -> int:
    """Bit for bit, on every instruction set, against the rule without fused operations.

    Leaves the result in ``item`` and returns the number of bad blocks.
    """
    others = {name: clone(item) for name in native_library().instruction_sets}
    rule: Rule = SeparateRule()
    if isinstance(item.hyper, LAMBHyper):
        rule = SeparateLAMBRule()
    bad = rule.step_parameter(item)
    for name, other in others.items():
        found = cpu.step_parameter(other, instruction_set=name)
        assert found.dtype == torch.int64
        assert found.shape == ()
        assert int(found) == int(bad), name
        assert_same_bits(other, item, name)
    return int(bad)


def tensors(item: ParameterStep) -> dict[str, Tensor]:
    """Everything a step writes; floats as bits, so that equal means equal."""
    found = {"param": item.param}
    for name, stored in item.moments.items():
        found |= {f"{name}.{key}": value for key, value in stored.fields.items()}
    return found


def assert_same_bits(a: ParameterStep, b: ParameterStep, note: str = "") -> None:
    for name, left in tensors(a).items():
        right = tensors(b)[name]
        if left.is_floating_point():
            nan = left.isnan()
            assert torch.equal(nan, right.isnan()), (name, note)
            left, right = left.masked_fill(nan, 0), right.masked_fill(nan, 0)
        assert torch.equal(left, right), (name, note)


@pytest.fixture(params=native_library().instruction_sets if cpu.native_status().available else [])
def instruction_set(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def exact_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round the square root in a parameter's update correctly; PyTorch may be one bit off."""
    monkeypatch.setattr(Tensor, "sqrt", lambda x: torch.sqrt(x.double()).to(x.dtype))


@pytest.fixture
def separate_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round each operation on its own; PyTorch fuses some where the CPU can."""
    add = Tensor.add_

    def add_(x: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
        return add(x, other if alpha == 1 else other * alpha)

    def lerp(x: Tensor, other: Tensor, weight: float) -> Tensor:
        hyper = type("Hyper", (), {"maximize": False, "beta1": 1.0 - weight, "beta2": 0.5})
        moments = {"exp_avg": x, "exp_avg_sq": x}
        return SeparateRule.averages(other, moments, hyper)["exp_avg"]

    monkeypatch.setattr(Tensor, "add_", add_)
    monkeypatch.setattr(Tensor, "lerp", lerp)
