"""Frozen parameters of any dtype may be in the list; only what has a gradient must be steppable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import AdamMini, checkpoint, stats
from luma_core.errors import UnsupportedGradientError, UnsupportedParameterError
from tests.optimizers import CLASSES

DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float64,
    torch.complex64,
)
every_optimizer = pytest.mark.parametrize("build", CLASSES)


class Quantized(nn.Module):
    """A packed base weight that is frozen, as QLoRA has it, beside weights that are trained."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.q_proj = nn.Parameter(torch.zeros(640, 1).to(dtype), requires_grad=False)
        self.down = nn.Parameter(torch.ones(64, 40))


def stepped(model: Quantized, optimizer: Any) -> None:
    model.down.grad = torch.ones_like(model.down)
    optimizer.step()


@every_optimizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_parameters_take_part_in_everything_but_steps(
    tmp_path: Path, build: Callable[..., Any], dtype: torch.dtype
) -> None:
    model = Quantized(dtype)
    optimizer = build(model.named_parameters())
    optimizer.init_state()
    stepped(model, optimizer)
    assert set(optimizer.state) == {model.down}
    assert {state.name: state.dtype for state in optimizer.parameter_states()} == {
        "q_proj": str(dtype).removeprefix("torch."),
        "down": "float32",
    }
    twin = build(model.named_parameters())
    twin.load_state_dict(optimizer.state_dict())
    checkpoint.save(tmp_path / "saved", optimizer=optimizer)
    checkpoint.load(tmp_path / "saved", optimizer=twin)
    if hasattr(twin, "import_adamw_state"):
        twin.import_adamw_state(optimizer.export_adamw_state())
    stats.compute(twin)
    stepped(model, twin)
    assert set(twin.state) == {model.down}


@every_optimizer
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_gradient_of_one_is_refused_before_anything_changed(
    build: Callable[..., Any], nonfinite: str
) -> None:
    model = Quantized(torch.float64)
    optimizer = build(model.named_parameters(), nonfinite=nonfinite)
    model.q_proj.requires_grad_()
    model.q_proj.grad = torch.ones_like(model.q_proj)
    with pytest.raises(UnsupportedGradientError, match=r"'q_proj' is torch.float64 .* has a grad"):
        stepped(model, optimizer)
    assert torch.equal(model.down, torch.ones(64, 40))
    assert not optimizer.state


def test_adam_mini_cuts_a_model_with_packed_weights() -> None:
    model = Quantized(torch.uint8)
    optimizer = AdamMini(model.named_parameters(), model=model, n_heads=4)
    assert [row.name for row in optimizer.partition] == ["down"]
    stepped(model, optimizer)


@every_optimizer
def test_parameters_without_a_shape_are_refused(build: Callable[..., Any]) -> None:
    model = nn.LazyLinear(40)
    options = {"model": model} if build is AdamMini else {}
    with pytest.raises(UnsupportedParameterError, match="'weight' has no shape yet"):
        build(model.named_parameters(), **options)
    model(torch.ones(2, 64))
    optimizer = build(model.named_parameters(), **options)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert set(optimizer.state) == {model.weight}
