"""The table codec: every element takes the nearest level, and a block's largest is kept."""

import pytest
import torch

from luma_core.codecs import TableM
from luma_core.codecs.packed import BITS, unpack
from luma_core.codecs.table_m import default_levels, power_levels

CODECS = [*(TableM(bits=bits) for bits in BITS), TableM(bits=2, levels=(-0.5, 0.0, 0.25, 1.0))]


def moments() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 256, generator=generator)
    return x * torch.exp(torch.randn(40, 256, generator=generator)) * 1e-4


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: str(len(c.levels)))
def test_every_element_takes_the_nearest_level(codec: TableM) -> None:
    x = moments()
    fields = codec.encode_tensor(x)
    scale = fields["scale"].double().repeat_interleave(128, dim=1)
    levels = scale.unsqueeze(-1) * torch.tensor(codec.levels, dtype=torch.float64)
    nearest = (levels - x.double().unsqueeze(-1)).abs().amin(dim=-1)
    found = (codec.decode_tensor(fields, x.shape).double() - x).abs()
    assert bool((found <= nearest + 1e-6 * scale.abs()).all())


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: str(len(c.levels)))
def test_the_largest_element_of_a_block_is_kept_with_its_sign(codec: TableM) -> None:
    x = moments().view(-1, 128)
    decoded = codec.decode_tensor(codec.encode_tensor(x), x.shape)
    place = x.abs().argmax(dim=1, keepdim=True)
    largest = x.gather(1, place)
    assert {-1.0, 1.0} == set(largest.sign().view(-1).tolist())
    torch.testing.assert_close(decoded.gather(1, place), largest, rtol=2**-8, atol=0)
    sizes = codec.scales(codec.encode_tensor(x))
    torch.testing.assert_close(sizes, largest.abs(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_default_levels_ascend_to_one_and_mirror_each_other_below_it(bits: int) -> None:
    levels = default_levels(bits)
    assert len(levels) == 1 << bits
    assert list(levels) == sorted(set(levels))
    assert levels[-1] == 1.0
    middle = levels.index(0.0)
    assert levels[:middle] == tuple(-level for level in levels[-2:middle:-1])


def test_power_levels_with_power_one_are_even() -> None:
    assert power_levels(3, 1.0) == (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


def test_a_threshold_belongs_to_the_level_below_whatever_the_scale() -> None:
    codec = TableM(bits=2, levels=(-0.5, 0.0, 0.5, 1.0), block_size=8)
    assert codec.thresholds == (-0.25, 0.25, 0.75)
    for sign in (1.0, -1.0):
        x = sign * torch.tensor([1.0, 0.75, 0.7501, 0.25, 0.2501, -0.25, -0.2499, -0.9])
        codes = unpack(codec.encode_tensor(x)["codes"], 2)
        assert codes.tolist() == [3, 2, 3, 1, 2, 0, 1, 0]


def test_scales_beyond_bfloat16_are_bounded_and_not_infinite() -> None:
    largest = torch.finfo(torch.float32).max
    decoded = TableM().decode_tensor(TableM().encode_tensor(torch.full((128,), -largest)), (128,))
    torch.testing.assert_close(decoded, torch.full((128,), -largest), rtol=2**-8, atol=0)
