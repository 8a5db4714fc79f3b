"""The rounding noise: golden values, uniformity, independence, and the global-index property."""

import math

import numpy as np
import pytest
import torch

from luma_core import rounding
from luma_core.rounding import StepKeys, parameter_key, random_bits, step_keys

COUNT = 1 << 18
GOLDEN_KEY = -2365393303341573377
GOLDEN_STEP_1 = StepKeys(1123879753, 1385678936)
GOLDEN_BITS = [6151713, 959837341, -790937206, 1747377510, 375607329, -585645656]
GOLDEN_THIRD = [46587, 33447, 19000, 58990, 160, 25357]


def reference_bits(keys: StepKeys, start: int, count: int) -> np.ndarray:
    """The documented formula in unsigned NumPy arithmetic."""
    index = np.arange(start, start + count, dtype=np.uint64)
    low = (index & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (index >> np.uint64(32)).astype(np.uint32)
    k0, k1 = np.uint32(keys.k0 & 0xFFFFFFFF), np.uint32(keys.k1 & 0xFFFFFFFF)
    x = low + k0
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15)) ^ k1 ^ (high * np.uint32(0x9E3779B9))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def draws_of(name: str, step: int, *, seed: int = 7) -> tuple[torch.Tensor, ...]:
    bits = random_bits(step_keys(parameter_key(seed, name), step), 0, COUNT)
    return rounding.first_draw(bits), rounding.second_draw(bits), rounding.third_draw(bits)


def test_golden_values() -> None:
    key = parameter_key(1234, "transformer.h.0.attn.c_attn.weight")
    assert key == GOLDEN_KEY
    assert step_keys(key, 1) == GOLDEN_STEP_1
    assert step_keys(key, 2**32 + 5) == step_keys(key, 5)
    bits = random_bits(step_keys(key, 1), 0, 6)
    assert bits.tolist() == GOLDEN_BITS
    assert rounding.third_draw(bits).tolist() == GOLDEN_THIRD


@pytest.mark.parametrize("start", [0, 1, 12345, 2**31 - 10, 2**32 - 10, 2**32, 5 * 2**33 + 17])
def test_equals_the_formula_in_unsigned_arithmetic(start: int) -> None:
    keys = step_keys(parameter_key(3, "w"), 11)
    bits = random_bits(keys, start, 1000).numpy().view(np.uint32)
    assert np.array_equal(bits, reference_bits(keys, start, 1000))


@pytest.mark.parametrize("start", [0, 999, 2**32 - 500])
def test_a_slice_of_the_noise_is_the_noise_of_the_slice(start: int) -> None:
    keys = step_keys(parameter_key(3, "w"), 11)
    whole = random_bits(keys, start, 1000)
    parts = [random_bits(keys, start + a, b - a) for a, b in ((0, 1), (1, 400), (400, 1000))]
    assert torch.equal(whole, torch.cat(parts))
    assert random_bits(keys, start, 0).shape == (0,)


@pytest.mark.parametrize("draw", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_draws_are_uniform(draw: int, step: int) -> None:
    values = draws_of("layer.weight", step)[draw]
    assert values.min() >= 0
    assert values.max() <= 65535
    for shift in (8, 0):  # the high and the low byte
        counts = torch.bincount((values >> shift) & 0xFF, minlength=256).double()
        expected = COUNT / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - 255) < 6 * math.sqrt(2 * 255)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


BOUND = 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_steps_are_independent(draw: int) -> None:
    """A known implementation repeats its noise every step; neighbours and far steps must differ."""
    first = draws_of("w", 1)[draw]
    for step in (2, 3, 65537, 2**20 + 1):
        other = draws_of("w", step)[draw]
        assert abs(correlation(first, other)) < BOUND
        assert float((first == other).double().mean()) < 2e-4


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_parameters_and_seeds_are_independent(draw: int) -> None:
    first = draws_of("h.0.w", 5)[draw]
    assert abs(correlation(first, draws_of("h.1.w", 5)[draw])) < BOUND
    assert abs(correlation(first, draws_of("h.0.w", 5, seed=8)[draw])) < BOUND


@pytest.mark.parametrize("lag", [1, 2, 64, 128, 4096])
def test_elements_are_independent(lag: int) -> None:
    for values in draws_of("w", 3):
        assert abs(correlation(values[:-lag], values[lag:])) < BOUND


def test_the_three_draws_of_an_element_are_independent() -> None:
    a, b, c = draws_of("w", 3)
    for left, right in ((a, b), (a, c), (b, c)):
        assert abs(correlation(left, right)) < BOUND
        joint = torch.bincount((left >> 12) * 16 + (right >> 12), minlength=256).double()
        chi2 = float(((joint - COUNT / 256) ** 2 / (COUNT / 256)).sum())
        assert abs(chi2 - 255) < 6 * math.sqrt(2 * 255)


def test_bfloat16_rounding_is_unbiased_and_picks_a_neighbour() -> None:
    x = torch.full((COUNT,), 1.0 + 3 * 2**-10)
    rounded = rounding.to_bfloat16(x, draws_of("p", 1)[2]).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    error = float((rounded.double() - x.double()).mean())
    assert abs(error) < 4 * 2**-8 / math.sqrt(COUNT)


def test_bfloat16_rounding_keeps_exact_and_special_values() -> None:
    x = torch.tensor([0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan])
    draw = torch.full(x.shape, 65535, dtype=torch.int32)
    rounded = rounding.to_bfloat16(x, draw).float()
    assert torch.equal(rounded[:-1], x[:-1])
    assert rounded[-1].isnan()
    assert torch.equal(rounding.to_bfloat16(x[:-1], None), x[:-1].bfloat16())


def test_streams_share_words_two_by_two_and_words_are_independent() -> None:
    keys = step_keys(parameter_key(7, "w"), 3)
    words = [random_bits(rounding.word_keys(keys, word), 0, COUNT) for word in range(3)]
    assert torch.equal(words[0], random_bits(keys, 0, COUNT))
    draws = [rounding.draw_stream(words[stream // 2], stream) for stream in range(6)]
    assert torch.equal(draws[0], rounding.first_draw(words[0]))
    assert torch.equal(draws[1], rounding.second_draw(words[0]))
    draws.append(rounding.third_draw(words[0]))
    correlations = torch.corrcoef(torch.stack(draws).double())
    off_diagonal = correlations - torch.eye(len(draws), dtype=torch.float64)
    assert off_diagonal.abs().max() < 6 / math.sqrt(COUNT)
