"""Wrong options, parameters and gradients: a typed error that names them, and nothing changed."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.errors import (
    BackendUnavailableError,
    ConfigurationError,
    UnknownCodecError,
    UnsupportedParameterError,
)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(4, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be a finite number of 0 or more"),
        ({"lr": math.nan}, "lr=nan must be"),
        ({"lr": "fast"}, "lr='fast' must be"),
        ({"lr": torch.tensor([1.0, 2.0])}, "lr="),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0) must be two numbers from 0 to below 1"),
        ({"betas": 0.9}, "betas=0.9 must be"),
        ({"betas": (0.9, math.nan)}, "betas="),
        ({"eps": -1e-8}, "eps=-1e-08 must be"),
        ({"eps": math.inf}, "eps=inf must be"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be"),
        ({"nonfinite": "ignore"}, "nonfinite='ignore' must be one of 'skip', 'raise'"),
        ({"block_size": 0}, "block_size=0 must be a positive integer or None"),
        ({"block_size": 1.5}, "block_size=1.5 must be"),
        ({"min_compress_elements": -1}, "min_compress_elements=-1 must be"),
        ({"stochastic_rounding": "yes"}, "stochastic_rounding='yes' must be True or False"),
        ({"maximize": 1}, "maximize=1 must be True or False"),
        ({"seed": -3}, "seed=-3 must be"),
        ({"backend": "cuda"}, "backend='cuda' must be one of 'auto', 'pytorch', 'triton'"),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LUMA([parameter()], **options)
    assert message in str(caught.value)


def test_an_explicit_backend_fails_loudly() -> None:
    with pytest.raises(BackendUnavailableError, match="backend='triton'"):
        LUMA([parameter()], backend="triton")


def test_a_bad_group_is_not_added() -> None:
    optimizer = LUMA([parameter()])
    for group in ({"lr": -1.0}, {"codecs": {"exp_avg": {"name": "zip"}}}, {"block_size": -4}):
        with pytest.raises((ConfigurationError, UnknownCodecError)):
            optimizer.add_param_group({"params": [parameter()], **group})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_parameter_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedParameterError, match="it must be float32, bfloat16 or float16"):
        LUMA([("layer.weight", nn.Parameter(torch.ones(4, 64, dtype=dtype)))])


def test_sparse_gradients_change_nothing() -> None:
    dense, embedding = parameter(), nn.Embedding(10, 64, sparse=True)
    optimizer = LUMA([("dense", dense), ("embedding", embedding.weight)])
    dense.grad = torch.ones_like(dense)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UnsupportedParameterError, match=r"gradient of 'embedding' is sparse"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(4, 64))
    assert not optimizer.state
