"""What codecs are tried on: odd shapes, values as moments have them, and noise."""

import torch

from luma_core import rounding
from luma_core.codecs import Codec

SHAPES = [(), (0,), (1,), (127,), (129,), (3, 0), (0, 64), (5, 3), (7, 130), (64, 2, 33), (2, 1)]


def draws(shape: tuple[int, ...]) -> torch.Tensor:
    """16-bit noise for each element."""
    bits = rounding.random_bits(rounding.step_keys(99, 1), 0, torch.Size(shape).numel())
    return rounding.first_draw(bits).view(shape)


def sample(codec: Codec, shape: tuple[int, ...], spread: float = 1.0) -> torch.Tensor:
    """A moment of magnitudes around 1e-3, or their squares, spread by e**spread."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=generator) * 1e-3
    x = x * torch.exp(spread * torch.randn(shape, generator=generator))
    return x if codec.signed else x.square()
