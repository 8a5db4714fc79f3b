"""Memory is estimated with tensors that have no values: on ``meta``, and in ``FakeTensorMode``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.errors import ConfigurationError

BUILDS: dict[str, Callable[..., Any]] = {
    "luma": LUMA,
    "luma-raise": partial(LUMA, nonfinite="raise", block_size=None),
    "turboadam": TurboAdam,
    "turboadam-costate": partial(TurboAdam, m_codec="costate"),
    "adam-mini": AdamMini,
    "lamb": partial(LAMB, max_grad_norm=1.0),
}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def network(device: str) -> nn.Module:
    shapes = {"weight": (64, 300), "bias": (64,), "head": (3, 64)}
    return nn.ParameterDict(
        {name: nn.Parameter(torch.empty(shape, device=device)) for name, shape in shapes.items()}
    )


def stepped(model: nn.Module, optimizer: Any, steps: int = 2) -> None:
    for _ in range(steps):
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()


def described(optimizer: Any) -> list[dict[str, Any]]:
    """Return dtype and shape of all state, in the parameters' order."""
    return [
        {key: (value.dtype, tuple(value.shape)) for key, value in optimizer.state[param].items()}
        for group in optimizer.param_groups
        for param in group["params"]
    ]


@every_build
def test_meta_parameters_step(build: Callable[..., Any]) -> None:
    real, model = network("cpu"), network("meta")
    expected, optimizer = build(real.named_parameters()), build(model.named_parameters())
    stepped(real, expected)
    stepped(model, optimizer)
    assert described(optimizer) == described(expected)
    for param in model.parameters():
        state = optimizer.state[param]
        assert {state[key].device.type for key in state if key != "noise_key"} == {"meta"}
    optimizer.load_state_dict(optimizer.state_dict())
    stepped(model, optimizer)
    with pytest.raises(ConfigurationError, match="has no values"):
        optimizer.parameter_states()


@every_build
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_parameters_step(build: Callable[..., Any], device: str) -> None:
    real = network("cpu")
    expected = build(real.named_parameters())
    stepped(real, expected)
    with FakeTensorMode():
        model = network(device)
        optimizer = build(model.named_parameters())
        stepped(model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
    # Estimators step them out of the mode too.
    stepped(model, optimizer)
    assert described(optimizer) == described(expected)
    values = [value for state in optimizer.state.values() for value in state.values()]
    assert all(isinstance(value, FakeTensor) for value in values)
    # What was made under the mode is not kept for steps of real tensors.
    stepped(real, expected)


@pytest.mark.parametrize("offload", ["host", "disk", "cpu-step", "auto"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_state_that_would_be_offloaded_is_made_on_the_host(
    tmp_path: Path, device: str, offload: str
) -> None:
    directory = tmp_path if offload == "disk" else None
    with FakeTensorMode():
        model = network(device)
        optimizer = LUMA(model.named_parameters(), offload=offload, offload_directory=directory)
        stepped(model, optimizer)
        optimizer.state_dict()
    codes = optimizer.state[model["weight"]]["exp_avg.codes"]
    assert codes.device.type == ("cuda" if (device, offload) == ("cuda", "auto") else "cpu")
