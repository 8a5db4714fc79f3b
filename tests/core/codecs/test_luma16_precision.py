"""LUMA's two codecs keep the update: error, bias and drift, over wide coordinate scales."""

import math

import pytest
import torch

from luma_core import rounding
from luma_core.codecs import Luma16M, Luma16V

EPS = 1e-8
SHAPE = (512, 1024)


def moments(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of log-normal coordinate scales: m and sqrt(v) of one coordinate are alike."""
    generator = torch.Generator().manual_seed(11)
    scale = 1e-4 * torch.exp(sigma * torch.randn(SHAPE, generator=generator))
    m = 0.3 * scale * torch.randn(SHAPE, generator=generator)
    v = scale.square() * (0.5 + torch.rand(SHAPE, generator=generator))
    return m, v


def bits(step: int) -> torch.Tensor:
    keys = rounding.step_keys(rounding.parameter_key(1, "w"), step)
    return rounding.random_bits(keys, 0, math.prod(SHAPE)).view(SHAPE)


@pytest.mark.parametrize("block_size", [128, None])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_update_error_is_at_most_a_thousandth(block_size: int | None, sigma: float) -> None:
    m, v = moments(sigma)
    codec_m, codec_v = Luma16M(block_size=block_size), Luma16V(block_size=block_size)
    noise = bits(1)
    m2 = codec_m.decode_tensor(codec_m.encode_tensor(m, rounding.first_draw(noise)), SHAPE)
    v2 = codec_v.decode_tensor(codec_v.encode_tensor(v, rounding.second_draw(noise)), SHAPE)
    update, coded = m / (v.sqrt() + EPS), m2 / (v2.sqrt() + EPS)
    error = (
        coded - update
    ).double().square().mean().sqrt() / update.double().square().mean().sqrt()
    assert 1e-5 < float(error) < 1e-3


@pytest.mark.parametrize("block_size", [128, None])
@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_reconstruction_is_unbiased(block_size: int | None, sigma: float) -> None:
    """m in the linear domain and the preconditioner of v, each within 4 standard errors."""
    m, v = moments(sigma)
    codec_m, codec_v = Luma16M(block_size=block_size), Luma16V(block_size=block_size)
    m_errors, w_errors = [], []
    for step in range(1, 9):
        noise = bits(step)
        m2 = codec_m.decode_tensor(codec_m.encode_tensor(m, rounding.first_draw(noise)), SHAPE)
        v2 = codec_v.decode_tensor(codec_v.encode_tensor(v, rounding.second_draw(noise)), SHAPE)
        m_errors.append(((m2.double() - m.double()) / m.double().abs()).flatten())
        w, w2 = 1 / (v.double().sqrt() + EPS), 1 / (v2.double().sqrt() + EPS)
        w_errors.append(((w2 - w) / w).flatten())
    for errors in (torch.cat(m_errors), torch.cat(w_errors)):
        # Elements on the linear part near zero would swamp the relative mean of all others.
        errors = errors[errors.abs() < 0.01]
        standard_error = float(errors.std()) / math.sqrt(errors.numel())
        assert abs(float(errors.mean())) < 4 * standard_error


@pytest.mark.parametrize("block_size", [128, None])
@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_second_moment_does_not_drift_over_2000_steps(block_size: int | None, sigma: float) -> None:
    shape = (64, 256)
    beta2 = 0.999
    generator = torch.Generator().manual_seed(3)
    scale = 1e-4 * torch.exp(sigma * torch.randn(shape, generator=generator))
    codec = Luma16V(block_size=block_size)
    fields = codec.init(shape, "cpu")
    exact = torch.zeros(shape)
    key = rounding.parameter_key(1, "w")
    for step in range(1, 2001):
        squared = (scale * torch.randn(shape, generator=generator)).square()
        exact = beta2 * exact + (1 - beta2) * squared
        v = beta2 * codec.decode_tensor(fields, shape) + (1 - beta2) * squared
        noise = rounding.random_bits(rounding.step_keys(key, step), 0, v.numel()).view(shape)
        fields = codec.encode_tensor(v, rounding.second_draw(noise))
    ratio = codec.decode_tensor(fields, shape) / exact
    assert abs(float(ratio.median()) - 1) < 0.01
    assert abs(float(ratio.mean()) - 1) < 0.01
    assert float(ratio.log().std()) < 0.02
