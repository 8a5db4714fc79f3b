"""The library's kernels of Lion, which has one moment, do what the rule says, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core import Lion
from luma_core.backends.eager import EAGER
from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, Luma16M, TableM
from luma_core.rules import ParameterStep
from luma_core.rules.lion import LionHyper, LionRule
from luma_kernels import cpu

from .conftest import assert_same_bits, clone, make_step
from .test_plan import parameters, train

CODECS = [FP32(), BF16(), Luma16M(), FP8E4M3(), TableM(bits=3), FP32(block_size=None)]
CODECS += [Luma16M(block_size=None), Luma16M(block_size=48), Luma16M(block_size=2056)]

NUMBERS = LionHyper(lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1, maximize=False)


class SeparateLionRule(LionRule):
    """Lion with each operation rounded on its own, as the native kernels do."""

    def update(
        self, grad: Tensor, moments: Any, hyper: LionHyper
    ) -> tuple[dict[str, Tensor], Tensor]:
        grad = -grad if hyper.maximize else grad
        old = moments["exp_avg"]
        new = {"exp_avg": self.lerp(old, grad, 1.0 - hyper.beta2)}
        return new, self.lerp(old, grad, 1.0 - hyper.beta1).sign_()

    @staticmethod
    def lerp(old: Tensor, grad: Tensor, weight: float) -> Tensor:
        difference = grad - old
        if weight < 0.5:
            return old + difference.mul_(weight)
        return grad + difference.mul_(weight - 1.0)


def lion_step(shape: tuple[int, ...], codec: Codec, hyper: Any, **options: Any) -> ParameterStep:
    plain = FP32(block_size=codec.block_size)
    item = make_step(shape, {"exp_avg": codec, "exp_avg_sq": plain}, **options)
    return replace(item, hyper=hyper, moments={"exp_avg": item.moments["exp_avg"]})


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("shape", [(1,), (129,), (5, 200), (2, 3000), (70, 1288)], ids=str)
def test_steps_have_the_bits_of_the_rule(
    shape: tuple[int, ...], codec: Codec, instruction_set: str
) -> None:
    for dtype, betas, maximize in (
        (torch.float32, (0.9, 0.99), False),
        (torch.bfloat16, (0.4, 0.3), True),
        (torch.float16, (0.95, 0.98), False),
    ):
        hyper = replace(NUMBERS, beta1=betas[0], beta2=betas[1], maximize=maximize)
        item = lion_step(shape, codec, hyper, dtype=dtype, grad_dtype=dtype)
        item.grad.view(-1)[: item.grad.numel() // 3] = 0.0
        item.grad.clamp_(-1e4, 1e4)  # float16 has no more than 65,504
        for _ in range(2):
            other = clone(item)
            assert cpu.unsupported_step(LionRule(), other) == ""
            assert int(SeparateLionRule().step_parameter(item)) == 0
            assert int(cpu.step_parameter(other, instruction_set=instruction_set)) == 0
            assert_same_bits(other, item)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("codec", CODECS[:7], ids=repr)
def test_a_block_that_is_not_finite_is_left_or_stored_as_the_rule_does(
    codec: Codec, skip: bool
) -> None:
    item = lion_step((4, 256), codec, NUMBERS, skip_nonfinite=skip)
    item.grad[2, 130] = float("nan")
    item.grad[3, 7] = float("inf")
    before, other = clone(item), clone(item)
    bad = 1 if codec.block_size is None else 2
    assert int(cpu.step_parameter(other)) == int(SeparateLionRule().step_parameter(item)) == bad
    if skip:
        assert_same_bits(other, item)
        assert torch.equal(item.param[2, 128:], before.param[2, 128:])
        whole = codec.block_size is None
        assert torch.equal(item.param[0], before.param[0]) is whole


CHOICES: list[dict[str, Any]] = [
    {"codec": "fp32"},
    {"codec": "bf16"},
    {"codec": "luma16"},
    {"codec": "5bit"},
    {"codec": {"exp_avg": FP8E4M3().to_dict()}},
    {"codec": "fp32", "block_size": None},
    {"codec": "luma16", "block_size": None},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_optimizer_plans_all_its_steps(
    choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Tensor:
        pytest.fail("PyTorch took a step")

    monkeypatch.setattr(EAGER, "step", refuse)
    params = parameters()
    optimizer = Lion(params, min_compress_elements=0, **choice)
    for step in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        if step:
            monkeypatch.setattr(cpu.step, "step_parameter", refuse)
            monkeypatch.setattr(cpu, "step_parameter", refuse)
        optimizer.step()
    assert all(int(optimizer.state[param]["step"]) == 2 for param in params)


@pytest.mark.parametrize("codec", ["luma16", "5bit"])
def test_planned_steps_are_those_of_pytorch(codec: str) -> None:
    def build(backend: str) -> Callable[..., Lion]:
        return partial(Lion, lr=1e-2, codec=codec, backend=backend, min_compress_elements=0)

    planned, eager = train(build("auto")), train(build("pytorch"))
    for name, value in planned.items():
        if not value.is_floating_point():
            same = (value != eager[name]).double().mean() if value.numel() else 0
            assert float(same) < 1e-2, name
        else:
            # A sign whose argument rounds to the other side of 0 would move by two steps.
            assert bool(((value - eager[name]).float().abs() < 1e-2).all()), name
