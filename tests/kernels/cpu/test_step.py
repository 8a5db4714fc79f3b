"""The native step does what the eager step does, on every instruction set and thread count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from luma_core import LUMA
from luma_core.backends import registry
from luma_core.codecs import Luma16M
from luma_core.rules import AdamWRule
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

from .conftest import (
    SeparateRule,
    assert_like_eager,
    assert_same_bits,
    clone,
    luma_codecs,
    make_step,
    plain_codecs,
    tensors,
)

pytestmark = pytest.mark.usefixtures("exact_roots")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(), (1,), (129,), (3, 128), (5, 200), (7, 31), (2, 3000), (70, 1288), (4, 3, 5, 7)]
BLOCKS = (1, 16, 48, 128, 1000, 2000, None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_bit_identical_to_eager(shape: tuple[int, ...], block_size: int | None) -> None:
    assert_like_eager(make_step(shape, luma_codecs(block_size)))
    assert_like_eager(make_step(shape, plain_codecs(block_size)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("block_size", [128, None])
def test_dtypes_of_parameters_and_gradients(
    dtype: torch.dtype, grad_dtype: torch.dtype, block_size: int | None
) -> None:
    for codecs in (luma_codecs(block_size), plain_codecs(block_size)):
        for stochastic in (True, False):
            item = make_step(
                (9, 300),
                codecs,
                dtype=dtype,
                grad_dtype=grad_dtype,
                stochastic_rounding=stochastic,
            )
            assert_like_eager(item)


@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"betas": (0.0, 0.0)},
        {"betas": (0.5, 0.9), "eps": 0.0, "weight_decay": 0.0},
        {"betas": (0.3, 0.99), "step": 1},
        {"lr": torch.tensor(0.003)},
        {"lr": torch.tensor(0.003, dtype=torch.float64)},
        {"lr": 0.0},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    assert_like_eager(make_step((9, 300), luma_codecs(128), **options))


@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 700),
    block_size=st.one_of(st.none(), st.integers(1, 300), st.integers(1020, 1030)),
    octaves=st.sampled_from([13, 29, 61]),
    dtype=st.sampled_from(DTYPES),
    grad_dtype=st.sampled_from(DTYPES),
    scale=st.integers(-60, 60),
    spread=st.floats(0, 10),
    bad=st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38]), max_size=3),
    skip=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_any_step_is_bit_identical_to_eager(
    rows: int,
    cols: int,
    block_size: int | None,
    octaves: int,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    scale: int,
    spread: float,
    bad: list[float],
    skip: bool,
    seed: int,
) -> None:
    item = make_step(
        (rows, cols),
        luma_codecs(block_size, octaves),
        dtype=dtype,
        seed=seed,
        spread=spread,
        skip_nonfinite=skip,
    )
    grad = item.grad * 2.0**scale
    for index, value in enumerate(bad):
        grad.view(-1)[(seed + 37 * index) % grad.numel()] = value
    item = replace(item, grad=grad.to(grad_dtype))
    assert_like_eager(item)


@pytest.mark.parametrize("block_size", [128, 1100, None])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_non_finite_gradients(block_size: int | None, plain: bool, skip: bool) -> None:
    codecs = plain_codecs(block_size) if plain else luma_codecs(block_size)
    for dtype in DTYPES:
        item = make_step((8, 2300), codecs, dtype=dtype, skip_nonfinite=skip)
        item.grad[2, 130] = float("nan")
        item.grad[2, 131] = float("inf")
        item.grad[7, 2299] = -float("inf")
        item.grad[5, 0] = 1e30  # its square is not finite
        assert assert_like_eager(item) == (3 if block_size else 1)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("block_size", [128, 1500])
def test_short_blocks_left_nonfinite_are_counted_again(
    block_size: int, betas: tuple[float, float]
) -> None:
    """Their missing elements decode to NaN too; with betas of 0, infinity times 0 stays bad."""
    item = make_step((3, 1600), luma_codecs(block_size), betas=betas, skip_nonfinite=False)
    item.grad[1, 1599] = float("inf")
    assert assert_like_eager(item) == 1
    assert int(item.moments["exp_avg"].fields["exponent"][1, -1]) == 254
    again = replace(item, grad=torch.ones(3, 1600), skip_nonfinite=True)
    assert assert_like_eager(again) == 1


def test_skipped_blocks_are_untouched() -> None:
    item = make_step((4, 256), luma_codecs(128))
    item.grad[1, 5] = float("nan")
    before = clone(item)
    assert int(cpu.step_parameter(item)) == 1
    for name, tensor in tensors(item).items():
        old = tensors(before)[name]
        columns = 128 if tensor.shape[1] == 256 else 1
        assert torch.equal(tensor[1, :columns], old[1, :columns]), name
    assert not torch.equal(item.param[1, 128:], before.param[1, 128:])


@pytest.mark.parametrize("first_index", [2**32 - 1500, 2**32, 2**40 + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_of_elements_beyond_32_bits(
    first_index: int,
    dtype: torch.dtype,
    instruction_set: str,
) -> None:
    item = replace(make_step((3, 1000), luma_codecs(128), dtype=dtype), first_index=first_index)
    expected = clone(item)
    cpu.step_parameter(item, instruction_set=instruction_set)
    SeparateRule().step_parameter(expected)
    assert_same_bits(item, expected)


@pytest.mark.parametrize("block_size", [128, 5000, None])
@pytest.mark.parametrize("shape", [(331, 777), (300_000,)], ids=str)
def test_threads_and_instruction_sets_give_equal_bits(
    shape: tuple[int, ...], block_size: int | None
) -> None:
    item = make_step(shape, luma_codecs(block_size), dtype=torch.bfloat16)
    item.grad.view(-1)[1000] = float("inf")
    first = clone(item)
    bad = cpu.step_parameter(first, threads=1, instruction_set=native_library().instruction_sets[0])
    for name in native_library().instruction_sets:
        for threads in (1, 2, 3, 5):
            other = clone(item)
            found = cpu.step_parameter(other, threads=threads, instruction_set=name)
            assert int(found) == int(bad)
            assert_same_bits(other, first)


def test_state_around_the_tensors_is_not_touched() -> None:
    """Each tensor is a slice of a larger one whose other bytes must survive."""
    item = make_step((3, 200), luma_codecs(48))

    def guarded(tensor: torch.Tensor) -> torch.Tensor:
        around = torch.full((tensor.numel() + 64,), 77, dtype=tensor.dtype)
        inside = around[32:-32].view(tensor.shape)
        inside.copy_(tensor)
        return inside

    guards = replace(item, param=guarded(item.param), moments=clone(item).moments)
    for stored in guards.moments.values():
        for key in stored.fields:
            stored.fields[key] = guarded(stored.fields[key])
    cpu.step_parameter(guards)
    cpu.step_parameter(item)
    assert_same_bits(guards, item)
    for tensor in tensors(guards).values():
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        assert bool((whole[:32] == 77).all() and (whole[-32:] == 77).all())


def test_autograd_notices_the_update() -> None:
    weight = nn.Parameter(torch.ones(4, 64))
    loss = (weight * weight).sum()
    optimizer = LUMA([weight], backend="native", seed=0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["auto", "native"])
def test_optimizers_use_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(AdamWRule, "step_parameter", refuse)
    params = [nn.Parameter(torch.ones(shape)) for shape in ((64, 64), (5,))]
    optimizer = LUMA(params, backend=name, seed=0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(float(param.detach().max()) < 1 for param in params)


def test_non_contiguous_tensors(instruction_set: str) -> None:
    item = make_step((40, 200), luma_codecs(128))
    other = replace(
        clone(item), param=item.param.t().contiguous().t(), grad=item.grad.t().contiguous().t()
    )
    assert not other.param.is_contiguous()
    cpu.step_parameter(other, instruction_set=instruction_set)
    cpu.step_parameter(item)
    assert_same_bits(other, item)


def test_what_it_cannot_take_takes_the_eager_path() -> None:
    item = make_step((3, 200), luma_codecs(48))
    item = replace(item, grad=item.grad.double())
    expected = clone(item)
    AdamWRule().step_parameter(expected)
    registry.step_parameter("native", AdamWRule(), item)
    assert_same_bits(item, expected)


def test_reasons_name_what_is_missing() -> None:
    item = make_step((3, 200), luma_codecs(48))
    rule = AdamWRule()
    assert cpu.unsupported_step(rule, item) == ""
    assert "gradient" in cpu.unsupported_step(rule, replace(item, grad=item.grad.to("meta")))
    assert "float64" in cpu.unsupported_step(rule, replace(item, grad=item.grad.double()))
    assert "SeparateRule" in cpu.unsupported_step(SeparateRule(), item)
    mixed = {**luma_codecs(48), "exp_avg_sq": Luma16M(block_size=48)}
    assert "luma16_m" in cpu.unsupported_codecs(rule, mixed)
    assert registry.choose("cpu", rule, mixed).backend == "pytorch"
    assert registry.choose("cpu", rule, luma_codecs(None)).backend == "native"
