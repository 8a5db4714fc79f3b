"""The native step of LAMB does what the eager step does, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LAMB
from luma_core.backends import registry
from luma_core.codecs import Codec
from luma_core.rules import AdamWRule, LAMBRule, ParameterStep
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

from .conftest import (
    assert_like_eager,
    assert_same_bits,
    bfloat16_codecs,
    clone,
    luma_codecs,
    make_step,
    plain_codecs,
)

pytestmark = pytest.mark.usefixtures("exact_roots")

CODECS = [luma_codecs, plain_codecs, bfloat16_codecs]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(), (1,), (129,), (3, 128), (5, 200), (7, 31), (2, 3000), (70, 1288), (4, 3, 5, 7)]

Codecs = Callable[[int], dict[str, Codec]]


def lamb_step(shape: tuple[int, ...], codecs: dict[str, Codec], **options: Any) -> ParameterStep:
    group = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "bias_correction": True,
        "always_adapt": False,
        "trust_clip": False,
        "maximize": False,
    }
    known = {key: options.pop(key) for key in list(options) if key in group}
    item = make_step(shape, codecs, **options)
    return replace(item, hyper=LAMBRule().hyper({**group, **known}, 3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 48, 128, 1000, 2000])
def test_bit_identical_to_eager(shape: tuple[int, ...], block_size: int) -> None:
    for codecs in CODECS:
        assert_like_eager(lamb_step(shape, codecs(block_size)))


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"trust_clip": True, "lr": torch.tensor(0.003)},
        {"bias_correction": False, "betas": (0.3, 0.9)},
    ],
    ids=str,
)
def test_options(codecs: Codecs, options: dict[str, Any]) -> None:
    assert_like_eager(lamb_step((9, 300), codecs(128), **options))


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_parameters_and_gradients(codecs: Codecs, dtype: torch.dtype) -> None:
    for grad_dtype, stochastic in product(DTYPES, (True, False)):
        item = lamb_step(
            (9, 300),
            codecs(128),
            dtype=dtype,
            grad_dtype=grad_dtype,
            stochastic_rounding=stochastic,
        )
        assert_like_eager(item)


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("block_size", [128, 1100])
def test_non_finite_gradients_do_not_spoil_the_norm(
    codecs: Codecs, skip: bool, block_size: int
) -> None:
    item = lamb_step((8, 2300), codecs(block_size), skip_nonfinite=skip)
    item.grad[2, 130] = float("nan")
    item.grad[7, 2299] = -float("inf")
    item.grad[5, 0] = 1e30  # its square is not finite
    before = clone(item)
    assert assert_like_eager(item) == 3
    assert bool(item.param[0].isfinite().all())
    assert not torch.equal(item.param[0], before.param[0])
    assert torch.equal(item.param[2, 128:256], before.param[2, 128:256]) == skip


def test_parameters_of_zeros_take_the_plain_rate() -> None:
    item = lamb_step((9, 300), luma_codecs(128))
    item.param.zero_()
    assert_like_eager(item)
    assert bool((item.param != 0).any())


@pytest.mark.parametrize("codecs", CODECS)
def test_threads_and_instruction_sets_give_equal_bits(codecs: Codecs) -> None:
    item = lamb_step((331, 777), codecs(128), dtype=torch.bfloat16)
    item.grad.view(-1)[1000] = float("inf")
    first = clone(item)
    bad = cpu.step_parameter(first, threads=1, instruction_set=native_library().instruction_sets[0])
    for name, threads in product(native_library().instruction_sets, (1, 2, 5)):
        other = clone(item)
        assert int(cpu.step_parameter(other, threads=threads, instruction_set=name)) == int(bad)
        assert_same_bits(other, first)


@pytest.mark.parametrize("factor", [0.25, 0.3, 1.0, 0.0])
def test_gradients_that_are_clipped(factor: float) -> None:
    cases = [
        (LAMBRule(), lamb_step((5, 200), luma_codecs(128))),
        (AdamWRule(), make_step((5, 200), plain_codecs(48))),
        (AdamWRule(), make_step((2, 2000), luma_codecs(None), grad_dtype=torch.bfloat16)),
    ]
    for rule, item in cases:
        scaled = replace(item, grad_factor=torch.tensor(factor))
        assert cpu.unsupported_step(rule, scaled) == ""
        assert_like_eager(scaled)


@pytest.mark.parametrize("codec", ["luma16", "fp32", "bf16"])
@pytest.mark.parametrize("name", ["auto", "native"])
def test_lamb_uses_it(name: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(LAMBRule, "stages", refuse)
    params = [nn.Parameter(torch.ones(shape)) for shape in ((64, 64), (5,))]
    optimizer = LAMB(params, codec=codec, backend=name, seed=0, max_grad_norm=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(float(param.detach().max()) < 1 for param in params)


def test_what_it_cannot_take_is_named() -> None:
    choice = registry.choose("cpu", LAMBRule(), luma_codecs(None))
    assert choice.backend == "pytorch"
    assert "block_size=None" in choice.reason
    assert registry.choose("cpu", LAMBRule(), luma_codecs(128)).backend == "native"
