"""Native encode and decode of moments in at most 8 bits equal the eager ones bit for bit."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luma_core import backends
from luma_core.codecs import FP8E4M3, Codec, LogV, RootV, TableM
from luma_core.codecs.packed import BITS
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

SHAPES = [(1,), (129,), (5, 200), (7, 31), (2, 3000), (3, 90_000)]
KINDS: list[type[TableM | RootV | LogV]] = [TableM, RootV, LogV]


def sample(codec: Codec, shape: tuple[int, ...], spread: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    x = x * torch.exp2(torch.randn(shape, generator=generator) * spread)
    return x if codec.signed else x.square()


def draws(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 65536, shape, dtype=torch.int32, generator=generator)


def assert_like_eager(
    codec: Codec, x: Tensor, noise: Tensor | None, threads: tuple[int, ...] = (1,)
) -> None:
    """On every instruction set and number of threads."""
    shape = tuple(x.shape)
    coded = codec.encode_tensor(x, noise)
    eager = codec.decode_tensor(coded, shape).nan_to_num(7.0)
    for how in product(threads, native_library().instruction_sets):
        found = cpu.encode(codec, x, noise, threads=how[0], instruction_set=how[1])
        assert found is not None
        assert found.keys() == coded.keys()
        for name, tensor in coded.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), (name, how)
        decoded = cpu.decode(codec, coded, shape, threads=how[0], instruction_set=how[1])
        assert decoded is not None
        assert torch.equal(decoded.nan_to_num(7.0), eager), how


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as garbage, so that what is not written is seen."""
    original = torch.empty

    def poisoned(*args: object, **options: object) -> Tensor:
        tensor: Tensor = original(*args, **options)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("block_size", [8, 128, 1504])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_eager(kind: type[TableM | RootV | LogV], bits: int, block_size: int) -> None:
    codec = kind(bits=bits, block_size=block_size)
    for shape in SHAPES:
        x = sample(codec, shape)
        assert_like_eager(codec, x, None)
        assert_like_eager(codec, x, draws(shape), threads=(3,))


@pytest.mark.parametrize("block_size", [1, 48, 128, 1500])
def test_fp8(block_size: int) -> None:
    codec = FP8E4M3(block_size=block_size)
    for shape in SHAPES:
        x = sample(codec, shape)
        assert_like_eager(codec, x, None)
        assert_like_eager(codec, x, draws(shape), threads=(3,))
    assert cpu.encode(FP8E4M3(block_size=None), x) is None


@given(
    block_size=st.integers(1, 20),
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    noisy=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_bit_pattern_in_fp8(block_size: int, bits: list[int], noisy: bool) -> None:
    x = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    noise = draws(tuple(x.shape)) if noisy else None
    assert_like_eager(FP8E4M3(block_size=block_size), x, noise)


@given(
    kind=st.sampled_from(KINDS),
    size=st.sampled_from(BITS),
    block_size=st.integers(1, 5).map(lambda count: 8 * count),
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    noisy=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_bit_pattern(
    kind: type[TableM | RootV | LogV],
    size: int,
    block_size: int,
    bits: list[int],
    noisy: bool,
) -> None:
    x = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    codec = kind(bits=size, block_size=block_size)
    x = x if codec.signed else x.abs()
    assert_like_eager(codec, x, draws(tuple(x.shape)) if noisy else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_floats(kind: type[TableM | RootV | LogV], dtype: torch.dtype) -> None:
    codec = kind(bits=4)
    assert_like_eager(codec, sample(codec, (5, 300), spread=1.0).to(dtype), None)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_of_ones_own(bits: int) -> None:
    levels = (-0.75, *(k / 100 for k in range((1 << bits) - 2)), 1.0)
    codec = TableM(bits=bits, levels=levels)
    for sign in (1, -1):
        assert_like_eager(codec, sign * sample(codec, (5, 300)), None)


def test_conversions_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(Codec, "encode_tensor", refuse)
    monkeypatch.setattr(Codec, "decode_tensor", refuse)
    for codec in (RootV(bits=8, floor=0.01), LogV(bits=8)):
        x = sample(codec, (40, 200), spread=0.5)
        restored = backends.decode(codec, backends.encode(codec, x), (40, 200))
        assert float((restored.sqrt() - x.sqrt()).abs().mean()) < 0.02
    for first in (TableM(bits=8), FP8E4M3()):
        x = sample(first, (40, 200), spread=0.5)
        restored = backends.decode(first, backends.encode(first, x), (40, 200))
        assert float((restored - x).abs().mean()) < 0.02
