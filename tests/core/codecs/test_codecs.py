"""What is not a promise of every codec: tiles, which codec is taken, configuration, fp8."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luma_core.codecs import (
    FP8E4M3,
    BlockGrid,
    Codec,
    Luma16M,
    Luma16V,
    codec_from_dict,
    moment_codecs,
)
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.testing.values import magnitudes, noise

"""Codecs with tests of their own: test_segments.py, test_packed.py."""

"""Relative and absolute bounds on the error of values of about 1e-3, where they are not small."""


@pytest.mark.parametrize("codec", [FP8E4M3(), Luma16M(), Luma16V()], ids=lambda c: c.name)
def test_minus_zeros_fit_like_zeros(codec: Codec) -> None:
    zeros = torch.zeros(2, 3, 40)
    assert torch.equal(codec.fit(-zeros)["exponent"], codec.fit(zeros)["exponent"])


def test_tiles_cover_every_element_once_whatever_their_size() -> None:
    for shape in [(7, 130), (3, 1000), (1000,), (9, 2), (2, 3, 64)]:
        for block_size in (None, 64, 128):
            for max_elements in (1, 64, 300, 10**6):
                grid = BlockGrid.of(shape, block_size)
                seen = torch.zeros(shape)
                for tile in grid.tiles(max_elements):
                    tile.write(seen, tile.read(seen) + 1)
                assert torch.equal(seen, torch.ones(shape)), (shape, block_size, max_elements)


def strided(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """A tensor of ``shape`` whose elements lie in memory in an unusual way, numbered in order."""
    if kind == "reversed":
        x = torch.empty(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    elif kind == "sliced":
        x = torch.empty([2 * size + 1 for size in shape])[tuple(slice(1, None, 2) for _ in shape)]
    else:
        x = torch.empty(shape).to(memory_format=torch.channels_last)
    return x.copy_(torch.arange(float(x.numel())).view(shape))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *((shape, "reversed") for shape in [(2, 1001), (37, 2), (1, 3, 67), (3, 5, 7, 11)]),
        *((shape, "sliced") for shape in [(), (131,), (5, 77), (9, 2), (1, 1, 50), (3, 5, 7, 11)]),
        *((shape, "channels_last") for shape in [(3, 5, 7, 11), (4, 2, 3, 3), (1, 3, 1, 40)]),
    ],
    ids=str,
)
def test_tiles_of_any_strides_are_those_of_contiguous_tensors(
    shape: tuple[int, ...], kind: str
) -> None:
    for block_size in (None, 8, 64):
        for max_elements in (1, 30, 64, 300, 10**6):
            x = strided(shape, kind)
            same = x.contiguous()
            for tile in BlockGrid.of(shape, block_size).tiles(max_elements):
                assert torch.equal(tile.read(x), tile.read(same))
                tile.write(x, tile.read(x) * 3 + 1)
                tile.write(same, tile.read(same) * 3 + 1)
                assert torch.equal(x, same), (block_size, max_elements)


class LargestTemporary(TorchDispatchMode):
    """Remembers the largest storage, in elements of float32, that is not the one of ``of``."""

    def __init__(self, of: torch.Tensor) -> None:
        super().__init__()
        self.of = of.untyped_storage().data_ptr()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for out in tree_leaves(result):
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.of:
                self.elements = max(self.elements, out.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("shape", [(2, 50_000), (50_000, 2), (1, 2, 50_000), (2, 50, 10, 100)])
def test_temporaries_of_a_transposed_tensor_are_bounded_by_the_tile(shape: tuple[int, ...]) -> None:
    x = strided(shape, "reversed")
    assert not x.is_contiguous()
    with LargestTemporary(x) as largest:
        for tile in BlockGrid.of(shape, 128).tiles(1024):
            tile.write(x, tile.read(x))
    assert 0 < largest.elements <= 1024 + 128


def test_what_stays_in_float32_is_one_rule() -> None:
    configs = {"exp_avg": Luma16M().to_dict()}
    kinds = {
        shape: moment_codecs(configs, shape)["exp_avg"].name
        for shape in [(768,), (65_536,), (768, 1), (768, 31), (768, 32), (70_000, 4), (), (1, 32)]
    }
    assert kinds == {
        (768,): "fp32",
        (65_536,): "luma16_m",
        (768, 1): "fp32",
        (768, 31): "fp32",
        (768, 32): "luma16_m",
        (70_000, 4): "luma16_m",
        (): "fp32",
        (1, 32): "luma16_m",
    }
    assert moment_codecs(configs, (), 0)["exp_avg"].name == "luma16_m"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "zip"}, "codec 'zip' is not known. Known codecs: bf16"),
        ({}, "codec None is not known"),
        ({"name": "fp32", "bits": 3}, "has no option 'bits'"),
        ({"name": "luma16_v", "octaves": 30}, "octaves=30 of codec luma16_v must be one of 13, 29"),
        ({"name": "luma16_m", "block_size": 0}, "block_size=0 must be a positive integer"),
        ({"name": "luma16_m", "block_size": True}, "block_size=True must be"),
        ({"name": "luma16_m", "block_size": "128"}, "block_size='128' must be"),
    ],
)
def test_bad_configuration_is_a_clear_error(config: dict[str, object], message: str) -> None:
    kind = UnknownCodecError if "known" in message else ConfigurationError
    with pytest.raises(kind) as caught:
        codec_from_dict(config)
    assert message in str(caught.value)


def test_fp8_codes_are_e4m3_numbers_scaled_by_a_power_of_two() -> None:
    x = magnitudes((5, 300), spread=3.0)
    fields = FP8E4M3().encode_tensor(x, noise((5, 300)))
    exponent = fields["exponent"].double().repeat_interleave(128, dim=1)[:, :300]
    values = fields["codes"].view(torch.float8_e4m3fn).double() * torch.exp2(exponent - 120)
    assert torch.equal(FP8E4M3().decode_tensor(fields, (5, 300)).double(), values)


def test_fp8_rounds_to_nearest_like_the_dtype_and_at_random_without_bias() -> None:
    x = torch.linspace(-256, 256, 4097).view(1, -1)
    codec = FP8E4M3(block_size=None)
    nearest = codec.decode_tensor(codec.encode_tensor(x), x.shape)
    ties = (nearest - x).abs() == (x.to(torch.float8_e4m3fn).float() - x).abs()
    assert ties.all()
    one = torch.full((1, 65536), 0.3)
    one[0, 0] = 1.0
    noise = torch.arange(65536, dtype=torch.int32).view(1, -1)
    mean = codec.decode_tensor(codec.encode_tensor(one, noise), one.shape)[0, 1:].double().mean()
    assert float(mean) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("name", ["luma16_m", "luma16_v", "fp8_e4m3"])
def test_a_block_far_longer_than_its_row_takes_no_more_memory(name):
    x = torch.rand(40, 48)
    long, short = (codec_from_dict({"name": name, "block_size": size}) for size in (1 << 30, 48))
    fields = long.encode_tensor(x, None)
    assert all(map(torch.equal, fields.values(), short.encode_tensor(x, None).values()))
    assert torch.equal(long.decode_tensor(fields, (40, 48)), short.decode_tensor(fields, (40, 48)))


@pytest.mark.parametrize(
    "config",
    [
        {"name": "luma16_m", "block_size": 10**30},
        {"name": "fp32", "block_size": 10**400},
        {"name": "table_m", "block_size": 1 << 30},
        {"name": "root_v", "floor": 10**400},
    ],
)
def test_sizes_and_numbers_beyond_all_use_are_refused(config):
    with pytest.raises(ConfigurationError, match=r"block_size|floor"):
        codec_from_dict(config)
