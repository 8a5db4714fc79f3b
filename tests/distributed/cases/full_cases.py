"""Cases of `test_full.py`: the whole state in one file, by PyTorch's own tools."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runs import OPTIMIZERS, assert_same, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from luma_core.optim.base import CompressedOptimizer

FULL = StateDictOptions(full_state_dict=True)
ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def _model(how: str = "fsdp") -> nn.Module:
    """Build a model with a frozen layer.

    Its rows are uneven, but where two dimensions of a mesh cut the same: PyTorch takes no other.
    """
    torch.manual_seed(5)
    width = 72 if how == "tensor" else 70
    layers = nn.Linear(48, width), nn.Tanh(), nn.Linear(width, 33, bias=False), nn.LayerNorm(33)
    model = nn.Sequential(*layers, nn.Linear(33, 5))
    model[4].requires_grad_(False)
    if how == "fsdp":
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    elif how == "tensor":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(model, mesh=mesh["data"])
    return model


def _optimizer(model: nn.Module, kind: str) -> CompressedOptimizer:
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    groups = [
        {"params": [item for item in named if item[1].dim() > 1]},
        {"params": [item for item in named if item[1].dim() < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[kind](groups)


def _train(model: nn.Module, optimizer: CompressedOptimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 48, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _state(optimizer: CompressedOptimizer) -> dict[str, torch.Tensor]:
    names = {param: name for name, param, _ in optimizer.parameters_by_name()}
    return {
        f"{names[param]}/{key}": whole(value)
        for param, entry in optimizer.state.items()
        for key, value in entry.items()
    }


def _trained(kind: str, how: str = "fsdp") -> tuple[nn.Module, CompressedOptimizer]:
    model = _model(how)
    optimizer = _optimizer(model, kind)
    _train(model, optimizer, range(3))
    return model, optimizer


def _loads(
    kind: str, saved: dict[str, Any], options: StateDictOptions, expected: Any, how: str = "fsdp"
) -> None:
    model = _model(how)
    optimizer = _optimizer(model, kind)
    set_optimizer_state_dict(model, optimizer, saved, options=options)
    assert_same(_state(optimizer), expected)
    _train(model, optimizer, range(3, 4))


def round_trip(kind: str, folder: Path) -> None:
    model, optimizer = _trained(kind)
    expected = _state(optimizer)
    found = get_optimizer_state_dict(model, optimizer, options=FULL)
    torch.save(found, folder / f"{kind}-{dist.get_rank()}.pt")
    saved = torch.load(folder / f"{kind}-{dist.get_rank()}.pt", weights_only=True)
    _loads(kind, saved, FULL, expected)
    on_cpu = get_optimizer_state_dict(model, optimizer, options=ON_CPU)
    assert bool(on_cpu) == (dist.get_rank() == 0)
    _loads(kind, on_cpu, FROM_RANK_0, expected)
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    _loads(kind, flat, FLAT, expected)


def tensor_parallel(kind: str, folder: Path) -> None:
    model, optimizer = _trained(kind, "tensor")
    expected = _state(optimizer)
    found = get_optimizer_state_dict(model, optimizer, options=FULL)
    _loads(kind, found, FULL, expected, "tensor")
    _loads(kind, found if dist.get_rank() == 0 else {}, FROM_RANK_0, expected, "tensor")


def plain(kind: str, folder: Path) -> None:
    """A whole model's state is broadcast, and loads into a sharded one and back."""
    model, optimizer = _trained(kind, "whole")
    expected = _state(optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    _loads(kind, saved if dist.get_rank() == 0 else {}, FROM_RANK_0, expected, "whole")
    _loads(kind, saved if dist.get_rank() == 0 else {}, FROM_RANK_0, expected)
    model, optimizer = _trained(kind)
    expected = _state(optimizer)
    found = get_optimizer_state_dict(model, optimizer, options=FULL)
    _loads(kind, found, StateDictOptions(), expected, "whole")


def before_the_first_step(kind: str, folder: Path) -> None:
    model = _model()
    optimizer = _optimizer(model, kind)
    start = [whole(param.detach()).clone() for param in model.parameters()]
    found = get_optimizer_state_dict(model, optimizer, options=FULL)
    assert all(map(torch.equal, start, (whole(p.detach()) for p in model.parameters())))
    assert {int(entry["step"]) for entry in found["state"].values()} == {0}
    other = _model()
    loaded, untouched = _optimizer(other, kind), _optimizer(_model(), kind)
    set_optimizer_state_dict(other, loaded, found, options=FROM_RANK_0)
    _train(model, optimizer, range(3))
    _train(other, loaded, range(3))
    assert_same(_state(loaded), _state(optimizer))
    third = _model()
    untouched = _optimizer(third, kind)
    _train(third, untouched, range(3))
    assert_same(_state(loaded), _state(untouched))
