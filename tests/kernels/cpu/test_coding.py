"""Native encode and decode of one moment equal the eager ones bit for bit."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luma_core import backends
from luma_core.codecs import BF16, FP32, Codec, Luma16M, Luma16V
from luma_kernels import cpu
from luma_kernels.cpu.library import native_library

SHAPES = [(1,), (129,), (5, 200), (7, 31), (2, 3000), (3, 90_000), (4, 3, 5, 7)]


def sample(codec: Codec, shape: tuple[int, ...], seed: int = 0, spread: float = 8.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x * torch.exp2(torch.randn(shape, generator=generator) * spread)
    return x.abs() if isinstance(codec, Luma16V) else x


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
        tensor = original(*args, **options)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("block_size", [1, 48, 128, 1500, None])
@pytest.mark.parametrize("kind", [Luma16M, Luma16V])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_eager(
    kind: type[Luma16M | Luma16V], block_size: int | None, shape: tuple[int, ...]
) -> None:
    codec = kind(block_size=block_size)
    x = sample(codec, shape)
    for noise in (None, draws(shape)):
        assert_like_eager(codec, x, noise, threads=(1, 3))


@given(
    kind=st.sampled_from([Luma16M, Luma16V]),
    octaves=st.sampled_from([13, 29, 61]),
    block_size=st.one_of(st.none(), st.integers(1, 200)),
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    noisy=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_bit_pattern(
    kind: type[Luma16M | Luma16V],
    octaves: int,
    block_size: int | None,
    bits: list[int],
    noisy: bool,
) -> None:
    x = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    x = x.abs() if kind is Luma16V else x
    codec = kind(block_size=block_size, octaves=octaves)
    noise = draws(tuple(x.shape)) if noisy else None
    assert_like_eager(codec, x, noise)


@pytest.mark.parametrize("block_size", [48, None])
@pytest.mark.parametrize("kind", [Luma16M, Luma16V])
def test_zeros_of_either_sign(kind: type[Luma16M | Luma16V], block_size: int | None) -> None:
    x = torch.zeros(4, 96)
    x[1] = -0.0
    x[2, ::2] = -0.0
    x[3, ::2] = -0.0
    x[3, 5] = 1.0
    assert_like_eager(kind(block_size=block_size), x, None)
    assert_like_eager(kind(block_size=block_size), -torch.zeros(4, 96), draws((4, 96)))


@pytest.mark.parametrize("codec", [Luma16M(), Luma16V()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_float(codec: Codec, dtype: torch.dtype) -> None:
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[torch.isfinite(x)].clone()
    x = x.abs() if isinstance(codec, Luma16V) else x
    assert_like_eager(codec, x, None)


@pytest.mark.parametrize("octaves", [13, 29, 61])
@pytest.mark.parametrize("kind", [Luma16M, Luma16V])
def test_every_code_decodes_alike(
    kind: type[Luma16M | Luma16V], octaves: int, instruction_set: str
) -> None:
    codec = kind(octaves=octaves)
    codes = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(512, 128)
    for exponent in (0, 1, 97, 128, 240, 254):
        fields = {"codes": codes, "exponent": torch.full((512, 1), exponent, dtype=torch.uint8)}
        found = cpu.decode(codec, fields, (512, 128), instruction_set=instruction_set)
        expected = codec.decode_tensor(fields, (512, 128))
        assert found is not None
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_codecs_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("took the eager path")

    monkeypatch.setattr(Codec, "encode_tensor", refuse)
    monkeypatch.setattr(Codec, "decode_tensor", refuse)
    codec = Luma16M()
    x = sample(codec, (40, 200), spread=1.0)
    restored = backends.decode(codec, backends.encode(codec, x), (40, 200))
    torch.testing.assert_close(restored, x, rtol=2e-3, atol=1e-8)


@pytest.mark.parametrize("codec", [FP32(), BF16()], ids=lambda codec: codec.name)
def test_other_codecs_are_left_alone(codec: Codec) -> None:
    x = torch.ones(4, 64)
    assert cpu.encode(codec, x) is None
    assert cpu.decode(codec, codec.encode_tensor(x, None), (4, 64)) is None


def test_unusual_tensors_are_left_alone() -> None:
    codec = Luma16M()
    x = torch.ones(64, 64)
    assert cpu.encode(codec, x.double()) is None
    assert cpu.encode(codec, x[:, ::2]) is None
    assert cpu.encode(codec, x, torch.zeros(64, 64)) is None
    fields = codec.encode_tensor(x, None)
    assert cpu.decode(codec, {**fields, "codes": fields["codes"].t()}, (64, 64)) is None
