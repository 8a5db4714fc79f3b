"""First moments near zero, where steps of a grid are absolute, beside the root below them."""

import pytest
import torch

from luma_core.codecs import BF16, FP8E4M3, FP32, Luma16M, TableM
from luma_core.codecs.base import Codec

GRIDS = [FP8E4M3(), Luma16M(), Luma16M(octaves=13)]


def block(seed: int = 0) -> torch.Tensor:
    """Magnitudes over 24 decades, of both signs, float32 ``[1, 4, 128]``."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** (24 * torch.rand(1, 4, 128, generator=generator) - 24)
    return sizes * torch.randn(1, 4, 128, generator=generator).sign()


@pytest.mark.parametrize("codec", GRIDS, ids=str)
@pytest.mark.parametrize("draw", [0, 30000, 65535, None])
def test_codes_never_exceed_the_value_where_the_root_is_smaller(
    codec: Codec, draw: int | None
) -> None:
    x = block()
    fitted = codec.fit(x)
    unit = codec.scales(fitted) * 2.0**-codec.log_grid.octaves
    near = x.abs() < 2 * unit
    draws = None if draw is None else torch.full(x.shape, draw, dtype=torch.int32)
    down = codec.round_down_below(x, fitted, torch.zeros_like(x))
    stored = codec.decode({**fitted, **codec.encode(down, fitted, draws)})
    assert bool((stored.abs() <= x.abs())[near].all())
    assert bool(near.any())
    assert torch.equal(down[~near], x[~near])
    step = unit * 2.0**-codec.log_grid.mantissa_bits
    assert bool(((x.abs() - stored.abs()) < step)[near].all())


@pytest.mark.parametrize("codec", GRIDS, ids=str)
@pytest.mark.parametrize("root", [1.0, torch.nan, -1.0, torch.inf])
def test_other_roots_change_nothing(codec: Codec, root: float) -> None:
    x = block(1)
    assert torch.equal(codec.round_down_below(x, codec.fit(x), torch.full_like(x, root)), x)


@pytest.mark.parametrize("codec", [FP32(), BF16(), TableM(bits=3)], ids=str)
def test_other_codecs_change_nothing(codec: Codec) -> None:
    x = block(2)
    assert codec.round_down_below(x, codec.fit(x), torch.zeros_like(x)) is x


@pytest.mark.parametrize("codec", GRIDS, ids=str)
def test_blocks_that_are_not_finite_stay(codec: Codec) -> None:
    x = block(3)
    x[0, 0, 0] = torch.inf
    down = codec.round_down_below(x, codec.fit(x), torch.zeros_like(x))
    assert torch.equal(down[0, 0], x[0, 0])
