"""The native step of packed codecs does what the eager step does, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from luma_core import TurboAdam
from luma_core.backends import registry
from luma_core.codecs import CoStateM
from luma_core.codecs.packed import BITS
from luma_core.rules import AdamWRule
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

from .conftest import (
    assert_like_eager,
    assert_same_bits,
    clone,
    make_step,
    packed_codecs,
    tensors,
)

pytestmark = pytest.mark.usefixtures("exact_roots")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(), (1,), (129,), (3, 128), (5, 200), (7, 31), (2, 3000), (70, 1288), (4, 3, 5, 7)]
PAIRS = [
    (3, 2, 0.25),
    (3, 5, None),
    (4, None, None),
    (None, 4, None),
    (None, 3, 0.1),
]
"""Bits of both moments, and the floor of the second."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [8, 48, 128, 1000, 1024, 2056])
def test_bit_identical_to_eager(shape: tuple[int, ...], block_size: int) -> None:
    for m_bits, v_bits, floor in PAIRS:
        assert_like_eager(
            make_step(shape, packed_codecs(m_bits, v_bits, floor=floor, block_size=block_size))
        )


@pytest.mark.parametrize("m_bits", [None, *BITS])
@pytest.mark.parametrize("floor", [None, 0.25, 2.0**-10])
def test_every_size_of_code(m_bits: int | None, floor: float | None) -> None:
    for v_bits, block_size in product(BITS, (128, 40)):
        codecs = packed_codecs(m_bits, v_bits, floor=floor, block_size=block_size)
        assert_like_eager(make_step((3, 300), codecs, spread=2.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_dtypes_of_parameters_and_gradients(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    for (m_bits, v_bits, floor), stochastic in product(PAIRS, (True, False)):
        item = make_step(
            (9, 300),
            packed_codecs(m_bits, v_bits, floor=floor),
            dtype=dtype,
            grad_dtype=grad_dtype,
            stochastic_rounding=stochastic,
        )
        assert_like_eager(item)


def _noisy(step: int, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _growing(step: int, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 4.0 ** (step - 6)


def _fading(step: int, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * (step < 2)


def _spreading(step: int, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.exp2(torch.randn(shape, generator=generator) * step)
    return torch.randn(shape, generator=generator) * size


@pytest.mark.parametrize("gradients", [_noisy, _growing, _fading, _spreading])
@pytest.mark.parametrize(("m_bits", "v_bits", "floor"), PAIRS)
def test_many_steps_with_windows_that_move(
    gradients: Callable[[int, torch.Generator, tuple[int, ...]], torch.Tensor],
    m_bits: int | None,
    v_bits: int | None,
    floor: float | None,
) -> None:
    """Scales and windows rise, fall and widen; what is padding takes part in them like the rest."""
    generator = torch.Generator().manual_seed(0)
    codecs = packed_codecs(m_bits, v_bits, floor=floor)
    item = make_step((3, 200), codecs, betas=(0.9, 0.8), dtype=torch.bfloat16)
    seen = set()
    for step in range(12):
        assert_like_eager(item)
        state = tensors(item)
        window = [value for key, value in state.items() if key.endswith(("exponent", "scale"))]
        seen.add(tuple(int(value.view(torch.uint8).sum()) for value in window))
        item = replace(item, grad=gradients(step, generator, (3, 200)))
    if gradients in (_growing, _spreading):
        assert len(seen) > 1


@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 500),
    block_size=st.integers(1, 20).map(lambda count: 8 * count),
    m_bits=st.sampled_from([None, *BITS]),
    v_bits=st.sampled_from([None, *BITS]),
    floor=st.sampled_from([None, 0.25, 0.01]),
    dtype=st.sampled_from(DTYPES),
    scale=st.integers(-70, 60),
    spread=st.floats(0, 10),
    bad=st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38]), max_size=3),
    skip=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_any_two_steps_are_bit_identical_to_eager(
    rows: int,
    cols: int,
    block_size: int,
    m_bits: int | None,
    v_bits: int | None,
    floor: float | None,
    dtype: torch.dtype,
    scale: int,
    spread: float,
    bad: list[float],
    skip: bool,
    seed: int,
) -> None:
    codecs = packed_codecs(m_bits, v_bits, floor=floor, block_size=block_size)
    item = make_step(
        (rows, cols), codecs, dtype=dtype, seed=seed, spread=spread, skip_nonfinite=skip
    )
    good = item.grad
    grad = good * 2.0**scale
    for index, value in enumerate(bad):
        grad.view(-1)[(seed + 37 * index) % grad.numel()] = value
    item = replace(item, grad=grad)
    assert_like_eager(item)
    assert_like_eager(replace(item, grad=good))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("block_size", [128, 1104])
@pytest.mark.parametrize(("m_bits", "v_bits", "floor"), PAIRS)
def test_non_finite_gradients(
    m_bits: int | None, v_bits: int | None, floor: float | None, block_size: int, skip: bool
) -> None:
    codecs = packed_codecs(m_bits, v_bits, floor=floor, block_size=block_size)
    item = make_step((8, 2300), codecs, skip_nonfinite=skip)
    item.grad[2, 130] = float("nan")
    item.grad[2, 131] = float("inf")
    item.grad[7, 2299] = -float("inf")
    item.grad[5, 0] = 1e30  # its square is not finite
    before = clone(item)
    assert assert_like_eager(item) == 3
    if skip:
        assert torch.equal(item.param[7, -1], before.param[7, -1])
        return
    again = replace(item, grad=torch.ones(8, 2300))
    assert_like_eager(again)


@pytest.mark.parametrize("first_index", [2**32 - 1500, 2**40 + 3])
def test_noise_of_elements_beyond_32_bits(first_index: int) -> None:
    codecs = packed_codecs(3, 2, floor=0.25)
    item = replace(make_step((3, 1000), codecs, dtype=torch.bfloat16), first_index=first_index)
    assert_like_eager(item)


@pytest.mark.parametrize("block_size", [128, 5000])
@pytest.mark.parametrize("shape", [(331, 777), (300_000,)], ids=str)
def test_threads_and_instruction_sets_give_equal_bits(
    shape: tuple[int, ...], block_size: int
) -> None:
    codecs = packed_codecs(3, 5, block_size=block_size)
    item = make_step(shape, codecs, dtype=torch.bfloat16)
    item.grad.view(-1)[1000] = float("inf")
    first = clone(item)
    bad = cpu.step_parameter(first, threads=1, instruction_set=native_library().instruction_sets[0])
    for name, threads in product(native_library().instruction_sets, (1, 2, 5)):
        other = clone(item)
        assert int(cpu.step_parameter(other, threads=threads, instruction_set=name)) == int(bad)
        assert_same_bits(other, first)


@pytest.mark.parametrize(("m_bits", "v_bits", "floor"), PAIRS)
def test_state_around_the_tensors_is_not_touched(
    m_bits: int | None, v_bits: int | None, floor: float | None
) -> None:
    """Each tensor is a slice of a larger one whose other bytes must survive."""
    item = make_step((3, 200), packed_codecs(m_bits, v_bits, floor=floor, block_size=48))

    def guarded(tensor: torch.Tensor) -> torch.Tensor:
        around = torch.full((tensor.numel() + 64,), 77, dtype=tensor.dtype)
        inside = around[32:-32].view(tensor.shape)
        inside.copy_(tensor)
        return inside

    guards = replace(item, param=guarded(item.param), moments=clone(item).moments)
    for stored in guards.moments.values():
        for key in stored.fields:
            stored.fields[key] = guarded(stored.fields[key])
    assert_like_eager(guards)
    for tensor in tensors(guards).values():
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        assert bool((whole[:32] == 77).all() and (whole[-32:] == 77).all())


@pytest.mark.parametrize("preset", ["5bit", "8bit"])
@pytest.mark.parametrize("name", ["auto", "native"])
def test_turbo_adam_uses_it(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(AdamWRule, "step_parameter", refuse)
    params = [nn.Parameter(torch.ones(shape)) for shape in ((64, 64), (3, 40), (5,))]
    optimizer = TurboAdam(params, preset=preset, backend=name, seed=0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(float(param.detach().max()) < 1 for param in params)


def test_what_it_does_not_pair_is_named() -> None:
    codecs = packed_codecs(3, 2, floor=0.25)
    rule = AdamWRule()
    assert registry.choose("cpu", rule, codecs).backend == "native"
    choice = registry.choose("cpu", rule, {**codecs, "exp_avg": CoStateM()})
    assert choice.backend == "pytorch"
    assert "costate_m" in choice.reason
    other = {**codecs, "exp_avg": packed_codecs(3, 2, block_size=64)["exp_avg"]}
    assert registry.choose("cpu", rule, other).backend == "pytorch"
