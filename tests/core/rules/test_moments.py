"""Rules with any number of moments: each has its codec and its noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import BF16, FP32, Codec
from luma_core.rules import ElementwiseRule, MomentSpec, ParameterStep, StoredMoment

SHAPE = (5, 300)
KEYS = rounding.step_keys(rounding.parameter_key(1, "weight"), 4)


@dataclass(frozen=True)
class Numbers:
    decay: float = 1.0
    rate: float = 0.5


class ThreeMoments(ElementwiseRule):
    """Keeps the gradient three times, and moves by the old value of the first."""

    moments = (
        MomentSpec("a", "signed", 0),
        MomentSpec("b", "square", 1),
        MomentSpec("c", "signed", 2),
    )

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> Numbers:
        return Numbers()

    def update(
        self, grad: Tensor, old: Mapping[str, Tensor], hyper: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        return dict.fromkeys(self.moment_names, grad), old["a"] + 1.0


def step_of(codec: Codec, dtype: torch.dtype = torch.float32) -> ParameterStep:
    moments = {
        name: StoredMoment(codec, codec.init(SHAPE, "cpu")) for name in ThreeMoments().moment_names
    }
    grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return ParameterStep(
        param=torch.zeros(SHAPE, dtype=dtype),
        grad=grad,
        moments=moments,
        hyper=Numbers(),
        keys=KEYS,
        skip_nonfinite=True,
        stochastic_rounding=True,
    )


def decoded(item: ParameterStep, name: str) -> Tensor:
    stored = item.moments[name]
    return stored.codec.decode_tensor(stored.fields, SHAPE)


@pytest.mark.parametrize("block_size", [128, None])
def test_each_moment_is_rounded_by_its_own_stream(block_size: int | None) -> None:
    item = step_of(BF16(block_size=block_size))
    ThreeMoments().step_parameter(item)
    for spec in ThreeMoments.moments:
        bits = item.random_bits(0, item.grad.numel(), word=spec.stream // 2).view(SHAPE)
        draw = rounding.draw_stream(bits, spec.stream)
        expected = rounding.to_bfloat16(item.grad, draw).float()
        assert torch.equal(decoded(item, spec.name), expected)


@pytest.mark.parametrize("block_size", [128, None])
def test_the_update_is_that_of_the_old_moments(block_size: int | None) -> None:
    item = step_of(FP32(block_size=block_size))
    ThreeMoments().step_parameter(item)
    assert torch.equal(item.param, torch.full(SHAPE, -0.5))
    ThreeMoments().step_parameter(item)
    assert torch.equal(item.param, -0.5 - (item.grad + 1.0) * 0.5)
