"""Wrong options, parameters and gradients: a typed error that names them, and nothing changed."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.backends import registry, triton
from luma_core.codecs import Luma16M, Luma16V
from luma_core.errors import (
    BackendUnavailableError,
    ConfigurationError,
    UnknownCodecError,
    UnsupportedParameterError,
)
from luma_core.rules import AdamWRule


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(4, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be a finite number of 0 or more"),
        ({"lr": math.nan}, "lr=nan must be"),
        ({"lr": "fast"}, "lr='fast' must be"),
        ({"lr": torch.tensor([1.0, 2.0])}, "lr="),
        ({"lr": torch.tensor(-1.0)}, "lr=tensor(-1.) must be"),
        ({"lr": torch.tensor(math.nan)}, "lr=tensor(nan) must be"),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0) must be two numbers from 0 to below 1"),
        ({"betas": 0.9}, "betas=0.9 must be"),
        ({"betas": (0.9, math.nan)}, "betas="),
        ({"eps": -1e-8}, "eps=-1e-08 must be"),
        ({"eps": math.inf}, "eps=inf must be"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be"),
        ({"nonfinite": "ignore"}, "nonfinite='ignore' must be one of 'skip', 'raise'"),
        ({"block_size": 0}, "block_size=0 must be a positive integer below 2**31, or None"),
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


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"exp_avg": Luma16M().to_dict()}, "must map each of 'exp_avg', 'exp_avg_sq'"),
        ({"exp_avg": "fp32", "exp_avg_sq": "fp32"}, "codecs['exp_avg']='fp32' must be"),
        (
            {"exp_avg": Luma16M().to_dict(), "exp_avg_sq": Luma16V(block_size=64).to_dict()},
            "must all have one block_size",
        ),
        ({"exp_avg": Luma16V().to_dict(), "exp_avg_sq": Luma16V().to_dict()}, "stores no signs"),
    ],
)
def test_codecs_of_a_group(codecs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LUMA([{"params": [parameter()], "codecs": codecs}])
    assert message in str(caught.value)


def test_names_must_differ() -> None:
    with pytest.raises(ConfigurationError, match="'a' is used more than once"):
        LUMA([("a", parameter()), ("a", parameter())])


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


def test_native_by_name_refuses_codecs_without_a_kernel() -> None:
    codecs = {"exp_avg": {"name": "costate_m"}, "exp_avg_sq": {"name": "bf16"}}
    param = parameter()
    try:
        optimizer = LUMA([{"params": [("w", param)], "codecs": codecs}], backend="native")
    except BackendUnavailableError:
        return  # no compiled library here: refused at construction
    param.grad = torch.ones_like(param)
    with pytest.raises(BackendUnavailableError, match="cannot step 'w': there is no native"):
        optimizer.step()
    assert torch.equal(param, torch.ones(4, 64))


def test_a_gpu_without_kernels_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "why_no_triton", lambda: "")
    rule = AdamWRule()
    kinds = {
        block: registry.choose(
            "cuda",
            rule,
            {"exp_avg": Luma16M(block_size=block), "exp_avg_sq": Luma16V(block_size=block)},
        ).backend
        for block in (128, None, 100)
    }
    assert kinds == {128: "triton", None: "triton", 100: "pytorch"}
