"""The floored codec of the second moment: unbiased between levels, never below its floor."""

import pytest
import torch

from luma_core.codecs import RootV
from luma_core.codecs.packed import BITS, unpack
from luma_core.errors import ConfigurationError

DRAWS = torch.arange(65536, dtype=torch.int32)[torch.randperm(65536)].view(512, 128)


@pytest.mark.parametrize("bits", BITS)
def test_nothing_decodes_below_the_floor_or_above_the_largest(bits: int) -> None:
    codec = RootV(bits=bits, floor=0.25)
    v = torch.rand(16, 256).mul(20).neg().exp()
    decoded = codec.decode_tensor(codec.encode_tensor(v, DRAWS[:32].view(16, 256)), v.shape)
    blocks, bound = decoded.view(-1, 128), v.view(-1, 128).amax(dim=1)
    floor = bound * 0.25**2
    assert bool((blocks >= floor.unsqueeze(1) * (1 - 1e-6)).all())
    assert bool((blocks.amin(dim=1) <= floor * 1.02).all())
    assert bool((blocks <= bound.unsqueeze(1) * (1 + 2**-6)).all())


@pytest.mark.parametrize("bits", BITS)
def test_without_noise_every_root_takes_the_nearest_level(bits: int) -> None:
    codec = RootV(bits=bits, floor=0.25)
    roots = torch.rand(8, 128) * 0.75 + 0.25
    roots[:, 7] = 1.0
    decoded = codec.decode_tensor(codec.encode_tensor(roots.square()), roots.shape).sqrt()
    assert float((decoded - roots).abs().max()) <= codec.step / 2 * (1 + 1e-4)


def test_the_scale_is_rounded_upwards_and_stands_still_while_the_largest_decays() -> None:
    codec = RootV()
    roots = torch.rand(4, 1024) + 1e-3
    scale = codec.encode_tensor(roots.square())["scale"].float()
    largest = roots.view(4, 8, 128).amax(dim=-1)
    assert bool((scale >= largest).all())
    assert bool((scale <= largest * (1 + 2**-7)).all())
    fixed = codec.encode_tensor(scale.square().repeat_interleave(128, dim=1))["scale"]
    assert torch.equal(fixed.float(), scale)
    decayed = codec.encode_tensor((scale * (1 - 2**-10)).square().repeat_interleave(128, dim=1))
    assert torch.equal(decayed["scale"], fixed)


def test_a_block_that_decays_slowly_follows_in_the_mean() -> None:
    codec, v = RootV(), torch.full((64, 128), 1.0)
    truth = v.clone()
    fields = codec.encode_tensor(v)
    for step in range(400):
        truth *= 0.999
        noise = DRAWS.view(-1)[(torch.arange(64 * 128) * 7 + step * 911) % 65536].view(64, 128)
        fields = codec.encode_tensor(codec.decode_tensor(fields, v.shape) * 0.999, noise)
    found = codec.decode_tensor(fields, v.shape).sqrt().mean()
    assert float(found) == pytest.approx(float(truth.sqrt().mean()), rel=0.03)


def test_codes_of_the_default_are_quarters_of_the_largest_root() -> None:
    roots = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.1, 0.0, 0.99, 0.63])
    codec = RootV(block_size=8)
    fields = codec.encode_tensor(roots.square())
    assert unpack(fields["codes"], 2).tolist() == [3, 2, 1, 0, 0, 0, 3, 2]
    decoded = codec.decode_tensor(fields, (8,)).sqrt().tolist()
    assert decoded == [1.0, 0.75, 0.5, 0.25, 0.25, 0.25, 1.0, 0.75]


def test_the_scale_rises_by_a_bounded_step_and_falls_at_once() -> None:
    codec, x = RootV(rise=64), torch.ones(5, 1, 128)
    x[1, 0, 3], x[3], x[4, 0, 3] = 1e6, 0.01, torch.inf
    before = codec.fit(torch.ones(5, 1, 128))
    before["scale"][2] = 0.0
    scale = codec.refit(x, before)["scale"].flatten().tolist()
    assert scale == [1.0, 1.5, 1.0, pytest.approx(0.1, rel=2**-7), torch.inf]
    assert RootV().refit(x, before)["scale"].flatten()[1] == 1000.0


def test_what_lies_above_the_scale_is_taken_for_it() -> None:
    codec, x = RootV(rise=64), torch.full((1, 1, 128), 1e38)
    scale = codec.refit(x, codec.fit(torch.full((1, 1, 128), 1e-30)))
    for draw in (None, torch.full((1, 1, 128), 65535, dtype=torch.int32)):
        decoded = codec.decode({**scale, **codec.encode(x, scale, draw)}).sqrt()
        torch.testing.assert_close(decoded, scale["scale"].float().expand(1, 1, 128))


def test_a_scale_that_follows_at_once_is_configured_as_it_always_was() -> None:
    assert "rise" not in RootV().to_dict()
    assert RootV.from_dict(RootV().to_dict()).rise is None
    assert RootV.from_dict(RootV(rise=3).to_dict()) == RootV(rise=3)
    with pytest.raises(ConfigurationError, match="rise=0"):
        RootV(rise=0)
