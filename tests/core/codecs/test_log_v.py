"""The logarithmic codec of the second moment: unbiased, on a grid that stands still."""

from itertools import pairwise

import pytest
import torch

from luma_core.codecs import LogV
from luma_core.codecs.packed import BITS

DRAWS = torch.arange(65536, dtype=torch.int32)[torch.randperm(65536)].view(512, 128)


def levels(codec: LogV, exponent: int, mantissa: int) -> list[float]:
    """The roots of all levels of a window, those below all floats left out."""
    fields = {
        "exponent": torch.tensor([[[exponent]]], dtype=torch.uint8),
        "mantissa": torch.tensor([[[mantissa]]], dtype=torch.uint8),
    }
    found = []
    for code in range(1 << codec.bits):
        packed = sum(code << codec.bits * place for place in range(8)).to_bytes(
            codec.bits, "little"
        )
        stored = torch.tensor(list(packed), dtype=torch.uint8).view(1, 1, -1)
        found.append(float(codec.decode({**fields, "codes": stored})[0, 0, 0].sqrt()))
    return [root for root in found if root > 1e-18]


@pytest.mark.parametrize("bits", BITS)
def test_levels_lie_at_the_same_places_whatever_the_window(bits: int) -> None:
    codec = LogV(bits=bits, block_size=8)
    for mantissa in range(bits - 1):
        here, above = levels(codec, 90, mantissa), levels(codec, 91, mantissa)
        assert here == sorted(set(here))
        assert here[-1] == 2.0**10
        assert {x for x in above if x <= here[-1]} <= set(here)
        finer = levels(codec, 90, mantissa + 1)
        assert {x for x in here if x >= finer[0]} <= set(finer)


def test_the_window_holds_most_of_a_wide_block() -> None:
    generator = torch.Generator().manual_seed(1)
    for bits, sigma, within in ((5, 1.0, 0.95), (5, 2.0, 0.9), (4, 1.0, 0.9)):
        roots = torch.exp(sigma * torch.randn(64, 128, generator=generator))
        codec = LogV(bits=bits)
        decoded = codec.decode_tensor(codec.encode_tensor(roots.square()), roots.shape).sqrt()
        close = ((decoded / roots).log().abs() < 0.4).float().mean()
        assert float(close) >= within, (bits, sigma)


def test_the_grid_stands_still_while_a_block_changes_little() -> None:
    generator = torch.Generator().manual_seed(2)
    codec = LogV(bits=5)
    v = torch.exp(2 * torch.randn(1, 400, 128, generator=generator))
    fields = codec.fit(v)
    fresh = fields
    changed = torch.zeros((), dtype=torch.int64)
    still = torch.zeros((), dtype=torch.int64)
    for _ in range(20):
        jittered = v * torch.exp(0.1 * torch.randn(v.shape, generator=generator))
        later, unsteady = codec.refit(jittered, fields), codec.fit(jittered)
        still += sum((later[k] != fields[k]).sum() for k in later)
        changed += sum((unsteady[k] != fresh[k]).sum() for k in unsteady)
        fields, fresh = later, unsteady
    assert int(changed) > 400
    assert int(still) < int(changed) / 10


def test_a_decaying_block_moves_down_an_octave_at_a_time() -> None:
    codec, v = LogV(bits=5), torch.full((1, 1, 128), 0.9)
    fields = codec.fit(v)
    moves = []
    for step in range(600):
        v = v * 0.99
        later = codec.refit(v, fields)
        if later["exponent"] != fields["exponent"]:
            assert int(later["exponent"]) == int(fields["exponent"]) - 1
            moves.append(step)
        fields = later
    octave = 138  # steps in which the root is halved
    assert len(moves) == 4
    assert all(abs(b - a - octave) <= 1 for a, b in pairwise(moves))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("top", [1e-30, 1.0, 1e30])
def test_a_block_of_extreme_spread_keeps_its_largest_and_nothing_else_is_larger(
    bits: int, top: float
) -> None:
    v = torch.full((1, 128), 1e-38)
    v[0, 3] = top
    v[0, 4] = 0.0
    for draw in (None, DRAWS[:1]):
        decoded = LogV(bits=bits).decode_tensor(LogV(bits=bits).encode_tensor(v, draw), v.shape)
        assert torch.isfinite(decoded).all()
        assert 0.25 * top <= float(decoded[0, 3]) <= 4 * top
        assert float(decoded.amax()) == float(decoded[0, 3])


def test_a_growing_block_is_followed_at_once() -> None:
    codec = LogV(bits=5)
    fields = codec.fit(torch.full((1, 1, 128), 1e-6))
    grown = torch.full((1, 1, 128), 1e-6)
    grown[0, 0, 5] = 4.0
    fields = codec.refit(grown, fields)
    decoded = codec.decode({**fields, **codec.encode(grown, fields, None)})
    assert float(decoded[0, 0, 5]) == 4.0
    assert float(codec.scales(fields).max()) == 2.0


def test_blocks_of_zeros_start_afresh() -> None:
    codec = LogV(bits=5)
    zeros = codec.fit(torch.zeros(1, 1, 128))
    assert int(zeros["exponent"]) == 0
    x = torch.rand(1, 1, 128) + 0.1
    fresh, again = codec.fit(x), codec.refit(x, zeros)
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
