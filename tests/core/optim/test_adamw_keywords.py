"""What AdamW takes in its constructor and groups is taken here, or refused with a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint
from luma_core.errors import (
    ConfigurationError,
    LumaError,
    StateMismatchError,
    UnsupportedParameterError,
)
from luma_core.optim import step_in_backward
from luma_core.optim.adamw_state import AdamWStateOptimizer
from tests.optimizers import CLASSES

Build = Callable[..., Any]
every_optimizer = pytest.mark.parametrize("build", CLASSES)
NUMBERS: dict[str, dict[str, Any]] = {
    "numpy": {
        "lr": np.float32(0.5),
        "betas": np.array([0.5, 0.75]),
        "weight_decay": np.float64(0.25),
        "seed": np.int64(4),
    },
    "tensors": {
        "lr": torch.tensor(0.5),
        "betas": (torch.tensor(0.5), torch.tensor([0.75])),
        "weight_decay": torch.tensor([0.25], dtype=torch.float64),
    },
    "one tensor of betas": {"lr": 0.5, "betas": torch.tensor([0.5, 0.75]), "weight_decay": 0.25},
}
HARMLESS = {"fused": True, "foreach": True, "amsgrad": False, "differentiable": False}
REFUSED = [
    ("amsgrad", True, "amsgrad=True must be False: the largest second moment"),
    ("differentiable", True, "differentiable=True must be False: autograd"),
    ("fused", "yes", "fused='yes' must be True, False or None"),
    ("foreach", 2, "foreach=2 must be True, False or None"),
]


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 4 * 64).view(4, 64))


def trained(build: Build, **options: Any) -> tuple[torch.Tensor, Any]:
    param = parameter()
    optimizer = build([("w", param)], **options)
    for step in range(3):
        param.grad = torch.full_like(param, 0.1 * (step + 1))
        optimizer.step()
    return param.detach(), optimizer


@every_optimizer
@pytest.mark.parametrize("backend", ["auto", "pytorch"])
@pytest.mark.parametrize("options", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_may_be_of_numpy_or_tensors(
    tmp_path: Path, build: Build, backend: str, options: dict[str, Any]
) -> None:
    plain = {"lr": 0.5, "betas": (0.5, 0.75), "weight_decay": 0.25}
    seed = {"seed": 4} if "seed" in options else {}
    expected, _ = trained(build, backend=backend, **plain, **seed)
    found, optimizer = trained(build, backend=backend, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    kept = {"lr": 0.5, "betas": [0.5, 0.75], "weight_decay": 0.25}
    assert {key: optimizer.group_options()[0][key] for key in kept} == kept
    other = build([("w", parameter())])
    torch.save(optimizer.state_dict(), tmp_path / "torch")
    other.load_state_dict(torch.load(tmp_path / "torch", weights_only=True))
    checkpoint.save(tmp_path / "saved", optimizer=optimizer)
    checkpoint.load(tmp_path / "saved", optimizer=other)
    assert {key: other.group_options()[0][key] for key in kept} == kept
    if isinstance(optimizer, AdamWStateOptimizer):
        optimizer.export_adamw_state()


@every_optimizer
def test_an_integer_tensor_is_a_rate(build: Build) -> None:
    assert torch.equal(trained(build, lr=torch.tensor(1))[0], trained(build, lr=1.0)[0])


def test_tensors_may_be_changed_in_place() -> None:
    beta, decay = torch.tensor(0.9), torch.tensor(0.0)
    param = parameter()
    optimizer = LUMA([param], betas=(beta, torch.tensor(0.75)), weight_decay=decay)
    beta.fill_(0.5)
    decay.fill_(0.25)
    param.grad = torch.ones_like(param)
    optimizer.step()
    options = optimizer.group_options()[0]
    assert (options["betas"], options["weight_decay"]) == ([0.5, 0.75], 0.25)


@every_optimizer
def test_what_has_no_effect_is_accepted_and_not_kept(build: Build) -> None:
    expected, _ = trained(build)
    found, optimizer = trained(build, **HARMLESS)
    assert torch.equal(found, expected)
    optimizer.add_param_group({"params": [("x", parameter())], **HARMLESS})
    saved = optimizer.state_dict()
    saved["param_groups"] = [{**group, **HARMLESS} for group in saved["param_groups"]]
    optimizer.load_state_dict(saved)
    kept = [optimizer.defaults, *optimizer.param_groups, *optimizer.group_options()]
    assert not any(HARMLESS.keys() & options.keys() for options in kept)


@every_optimizer
@pytest.mark.parametrize(("name", "value", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_would_have_an_effect_is_refused(
    build: Build, name: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build([("w", parameter())], **{name: value})
    with pytest.raises(ConfigurationError, match=message):
        build([{"params": [("w", parameter())], name: value}])
    optimizer = build([("w", parameter())])
    with pytest.raises(ConfigurationError, match=message):
        optimizer.add_param_group({"params": [("x", parameter())], name: value})
    assert len(optimizer.param_groups) == 1
    saved = optimizer.state_dict()
    saved["param_groups"] = [{**group, name: value} for group in saved["param_groups"]]
    with pytest.raises(StateMismatchError, match=message):
        optimizer.load_state_dict(saved)


@every_optimizer
@pytest.mark.parametrize("group", [[parameter()], [("x", parameter())], None, parameter()])
def test_a_group_is_a_dict(build: Build, group: Any) -> None:
    optimizer = build([("w", parameter())])
    with pytest.raises(UnsupportedParameterError, match="a parameter group is a") as caught:
        optimizer.add_param_group(group)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnsupportedParameterError, match="are a set"):
        optimizer.add_param_group({"params": {parameter()}})
    with pytest.raises(ConfigurationError, match="has no 'params'"):
        optimizer.add_param_group({"lr": 1.0})


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@every_optimizer
def test_sparse_gradients_are_a_runtime_error_as_in_pytorch(build: Build, nonfinite: str) -> None:
    param = parameter()
    optimizer = build([("w", param)], nonfinite=nonfinite)
    param.grad = torch.ones_like(param).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of 'w' is sparse") as caught:
        optimizer.step()
    assert isinstance(caught.value, UnsupportedParameterError)
    assert not optimizer.state


@pytest.mark.gpu
@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float32])
def test_rates_on_a_device_may_be_of_any_dtype(build: Build, dtype: torch.dtype) -> None:
    found = []
    for rate in (1.0, torch.tensor(1, dtype=dtype, device="cuda")):
        param = nn.Parameter(parameter().detach().cuda())
        betas = (torch.tensor(0.5, device="cuda"), torch.tensor(0.75, device="cuda"))
        optimizer = build([("w", param)], lr=rate, betas=betas)
        param.grad = torch.ones_like(param)
        optimizer.step()
        found.append(param.detach())
    torch.testing.assert_close(*found)


@every_optimizer
@pytest.mark.parametrize("backend", ["auto", "pytorch"])
@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_what_is_set_by_hand_later_is_checked_at_the_next_step(
    build: Build, backend: str, name: str, value: object, message: str
) -> None:
    before, optimizer = trained(build, backend=backend)
    before = before.clone()
    param = optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[0][name] = value
    with pytest.raises(ConfigurationError, match=message):
        optimizer.step()
    assert torch.equal(param, before)
    other = build([("w", parameter())])
    with pytest.raises(LumaError, match=message):
        other.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0][name] = HARMLESS[name]
    optimizer.step()
    assert not torch.equal(param, before)


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_a_step_in_backward_checks_them_too(name: str, value: object, message: str) -> None:
    model = nn.Linear(4, 4)
    optimizer = LUMA(model.named_parameters())
    step_in_backward(model, optimizer)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ConfigurationError, match=message):
        model(torch.ones(2, 4)).sum().backward()
