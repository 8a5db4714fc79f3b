"""The library's kernels of Lion, which has one moment, do what the rule says, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, Luma16M, TableM
from luma_core.rules import ParameterStep
from luma_kernels import cpu
from luma_kernels.cpu import step as launcher
from luma_kernels.cpu.rules import LION, NativeRule

from .conftest import assert_same_bits, clone, make_step

CODECS = [FP32(), BF16(), Luma16M(), FP8E4M3(), TableM(bits=3), FP32(block_size=None)]
CODECS += [Luma16M(block_size=None), Luma16M(block_size=48), Luma16M(block_size=2056)]


@dataclass(frozen=True)
class LionNumbers:
    """Numbers of a step."""

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    maximize: bool = False


def scalars(hyper: LionNumbers) -> tuple[float, ...]:
    """Return what ``lion.h`` reads."""
    weights = (1.0 - hyper.beta2, 1.0 - hyper.beta1)
    lerps = [(w - 1.0, True) if w >= 0.5 else (w, False) for w in weights]
    return *lerps[0], *lerps[1], 1.0 - hyper.lr * hyper.weight_decay, hyper.lr


def lerp(old: Tensor, grad: Tensor, weight: float) -> Tensor:
    difference = grad - old
    return old + difference * weight if weight < 0.5 else grad + difference * (weight - 1.0)


def step_in_pytorch(item: ParameterStep) -> None:
    """Take the step of a parameter whose gradients are finite, with the tensors as wholes."""
    hyper, stored = item.hyper, item.moments["exp_avg"]
    grad = item.grad.float()
    grad = -grad if hyper.maximize else grad
    old = stored.codec.decode_tensor(stored.fields, tuple(item.param.shape))
    update = lerp(old, grad, 1.0 - hyper.beta1).sign()
    bits = item.random_bits(0, grad.numel()).view(grad.shape)
    draws = rounding.first_draw(bits) if stored.codec.rounds else None
    coded = stored.codec.encode_tensor(lerp(old, grad, 1.0 - hyper.beta2), draws)
    for key, value in coded.items():
        stored.fields[key].copy_(value)
    param = item.param.float() * (1.0 - hyper.lr * hyper.weight_decay) - update * hyper.lr
    if item.param.dtype == torch.bfloat16:
        param = rounding.to_bfloat16(param, rounding.third_draw(bits))
    item.param.copy_(param)


def lion_step(shape: tuple[int, ...], codec: Codec, hyper: Any, **options: Any) -> ParameterStep:
    plain = FP32(block_size=codec.block_size)
    item = make_step(shape, {"exp_avg": codec, "exp_avg_sq": plain}, **options)
    return replace(item, hyper=hyper, moments={"exp_avg": item.moments["exp_avg"]})


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = NativeRule(LION, LionNumbers, scalars)
    monkeypatch.setitem(launcher.BY_HYPER, LionNumbers, rule)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("shape", [(1,), (129,), (5, 200), (2, 3000), (70, 1288)], ids=str)
def test_steps_have_the_bits_of_pytorch(
    shape: tuple[int, ...], codec: Codec, instruction_set: str
) -> None:
    for dtype, betas, maximize in (
        (torch.float32, (0.9, 0.99), False),
        (torch.bfloat16, (0.4, 0.3), True),
        (torch.float16, (0.95, 0.98), False),
    ):
        hyper = LionNumbers(beta1=betas[0], beta2=betas[1], maximize=maximize)
        item = lion_step(shape, codec, hyper, dtype=dtype, grad_dtype=dtype)
        item.grad.view(-1)[: item.grad.numel() // 3] = 0.0
        item.grad.clamp_(-1e4, 1e4)  # float16 has no more than 65,504
        for _ in range(2):
            other = clone(item)
            step_in_pytorch(item)
            assert int(cpu.step_parameter(other, instruction_set=instruction_set)) == 0
            assert_same_bits(other, item)


@pytest.mark.parametrize("codec", CODECS[:7], ids=repr)
def test_a_block_that_is_not_finite_is_left(codec: Codec) -> None:
    item = lion_step((4, 256), codec, LionNumbers())
    item.grad[2, 130] = float("nan")
    before = clone(item)
    assert int(cpu.step_parameter(item)) == 1
    assert torch.equal(item.param[2, 128:], before.param[2, 128:])
    whole = codec.block_size is None
    assert torch.equal(item.param[0], before.param[0]) is whole
