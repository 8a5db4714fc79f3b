"""Cases of `test_dcp.py`: state saved and loaded through ``torch.distributed.checkpoint``."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from runs import Run, assert_same, mesh_of_world, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from luma_core import LUMA

BEFORE, AFTER = 4, 10


def _content(run: Run) -> dict[str, Any]:
    params = {name: param.detach() for name, param in run.params.items()}
    return {"params": params, "optim": run.optimizer.state_dict()}


def save(kind: str, folder: Path) -> None:
    dcp.save(_content(Run(kind, mesh_of_world()).steps(BEFORE)), checkpoint_id=folder / kind)


def save_later(kind: str, folder: Path) -> None:
    run = Run(kind, mesh_of_world()).steps(BEFORE)
    dcp.async_save(_content(run), checkpoint_id=folder / kind).result()


def older(kind: str, folder: Path) -> None:
    """A folder whose codes are 16-bit integers loads into the same."""
    run = Run(kind, mesh_of_world()).steps(BEFORE)
    dcp.save(torch.optim.Optimizer.state_dict(run.optimizer), checkpoint_id=folder / "older")
    again = Run(kind, mesh_of_world())
    again.optimizer.init_state()
    content = torch.optim.Optimizer.state_dict(again.optimizer)
    dcp.load(content, checkpoint_id=folder / "older")
    again.optimizer.load_state_dict(content)
    found, expected = again.tensors(), run.tensors()
    for name in again.params:
        found.pop(name)
        expected.pop(name)
    assert_same(found, expected)


def load(kind: str, folder: Path) -> None:
    run = Run(kind, mesh_of_world())
    run.optimizer.init_state()
    content = _content(run)
    dcp.load(content, checkpoint_id=folder / kind)
    run.optimizer.load_state_dict(content["optim"])
    run.done = BEFORE
    expected = Run(kind).steps(BEFORE)
    assert_same(run.tensors(), expected.tensors())
    assert_same(run.steps(AFTER).tensors(), expected.steps(AFTER).tensors())


def _model() -> tuple[nn.Module, LUMA]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(48, 70), nn.Tanh(), nn.LayerNorm(70), nn.Linear(70, 33))
    for layer in (model[0], model[3], model):
        fully_shard(layer)
    return model, LUMA(model.named_parameters(), lr=1e-2, seed=1)


def _train(model: nn.Module, optimizer: LUMA, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _tensors(model: nn.Module, optimizer: LUMA) -> dict[str, torch.Tensor]:
    found = {name: param.detach() for name, param in model.named_parameters()}
    for state in optimizer.parameter_states():
        found.update({f"{state.name}/{key}": value for key, value in state.fields.items()})
    return {name: whole(value) for name, value in found.items()}


def save_model(folder: Path) -> None:
    model, optimizer = _model()
    _train(model, optimizer, range(3))
    content = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(content, checkpoint_id=folder / "model")
    found = _tensors(model, optimizer)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "expected.pt")


def load_model(folder: Path) -> None:
    model, optimizer = _model()
    optimizer.init_state()
    content = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
    }
    dcp.load(content, checkpoint_id=folder / "model")
    set_model_state_dict(model, content["model"])
    set_optimizer_state_dict(model, optimizer, content["optim"])
    assert_same(_tensors(model, optimizer), torch.load(folder / "expected.pt"))
    assert {state.step for state in optimizer.parameter_states()} == {3}
    assert optimizer.param_groups[0]["seed"] == 1
    _train(model, optimizer, range(3, 5))
