"""Cases of `test_meshes.py`: parameters on any mesh, and parameters of some processes only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runs import OPTIMIZERS, assert_same, gradient, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from luma_core import TurboAdam, checkpoint
from luma_core.optim.base import CompressedOptimizer
from luma_core.sharding import local_tensor

Layout = dict[str, tuple[DeviceMesh | None, tuple[Any, ...]]]

SHAPES = {
    "norm": (70,),
    "replicated": (9, 40),
    "rows": (37, 300),
    "columns": (20, 1500),
    "both": (19, 700),
    "strided": (37, 64),
    "uneven": (5, 6, 90),
    "few": (1, 64),
    "flat": (70_001,),
    "empty": (0, 40),
}
"""Rows, and long vectors, whose halves and quarters cut blocks; fewer rows than processes."""


def two_by_two() -> Layout:
    """Each parameter on another mesh of four processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp = mesh["dp"], mesh["tp"]
    return {
        "norm": (dp, (Shard(0),)),
        "replicated": (tp, (Replicate(),)),
        "rows": (tp, (Shard(0),)),
        "columns": (tp, (Shard(1),)),
        "both": (mesh, (Shard(0), Shard(1))),
        "strided": (mesh, (_StridedShard(0, split_factor=2), Shard(0))),
        "uneven": (mesh, (Replicate(), Shard(2))),
        "few": (dp, (Shard(0),)),
        "flat": (mesh, (Shard(0), Replicate())),
        "empty": (dp, (Shard(0),)),
    }


def three_dimensional() -> Layout:
    """Replicas of groups that are cut along two dimensions: 4 processes as 2 x 1 x 2."""
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("replicas", "fsdp", "tp"))
    both = mesh["fsdp", "tp"]
    return {
        "norm": (mesh, (Replicate(), Shard(0), Replicate())),
        "replicated": (mesh, (Replicate(), Replicate(), Replicate())),
        "rows": (mesh, (Shard(0), Replicate(), Replicate())),
        "columns": (mesh, (Replicate(), Shard(0), Shard(1))),
        "both": (mesh, (Shard(0), Replicate(), Shard(1))),
        "strided": (both, (_StridedShard(0, split_factor=2), Shard(0))),
        "uneven": (mesh, (Shard(0), Shard(1), Shard(2))),
        "few": (mesh["replicas"], (Shard(0),)),
        "flat": (mesh, (Shard(0), Replicate(), Shard(0))),
        "empty": (mesh["tp"], (Replicate(),)),
    }


def along(dimension: int) -> Callable[[], Layout]:
    """Every parameter on one mesh of all processes, cut along a dimension where it has that."""

    def layout() -> Layout:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        return {
            name: (mesh, (Shard(min(dimension, len(shape) - 1)),)) for name, shape in SHAPES.items()
        }

    return layout


def plain() -> Layout:
    return dict.fromkeys(SHAPES, (None, ()))


LAYOUTS = {
    "2x2": two_by_two,
    "2x1x2": three_dimensional,
    "columns": along(1),
    "rows": along(0),
    "plain": plain,
}


class Laid:
    """Parameters in a layout, and their optimizer; like `runs.Run` but each on its own mesh."""

    def __init__(self, kind: str, layout: Layout) -> None:
        self.layout, self.done = layout, 0
        generator = torch.Generator().manual_seed(11)
        self.params = {
            name: nn.Parameter(self._place(name, torch.randn(shape, generator=generator) * 0.1))
            for name, shape in SHAPES.items()
        }
        self.optimizer = OPTIMIZERS[kind](self.params.items())

    def _place(self, name: str, value: Tensor) -> Tensor:
        mesh, placements = self.layout[name]
        if mesh is None:
            return value.clone()
        return distribute_tensor(value, mesh, placements, src_data_rank=None)

    def steps(self, count: int) -> "Laid":
        for _ in range(count):
            self.done += 1
            for name, param in self.params.items():
                value = gradient(name, torch.empty(SHAPES[name]), self.done)
                param.grad = self._place(name, value)
            self.optimizer.step()
        return self

    def local(self) -> dict[str, Tensor]:
        """Everything that this process has."""
        found = {name: local_tensor(param.detach()) for name, param in self.params.items()}
        for name, param in self.params.items():
            for key, value in self.optimizer.state[param].items():
                found[f"{name}/{key}"] = local_tensor(value)
        return {name: value.clone() for name, value in found.items()}


def _argument(text: str) -> tuple[str, str]:
    kind, _, layout = text.partition(",")
    return kind, layout


def resumed_on_the_same_mesh(argument: str, folder: Path) -> None:
    """Save, train on; load into a new run, train on: the same bits everywhere."""
    kind, name = _argument(argument)
    layout = LAYOUTS[name]()
    run = Laid(kind, layout).steps(3)
    url = folder / argument.replace(",", "-")
    checkpoint.save_sharded(url, optimizer=run.optimizer)
    saved = run.local()
    again = Laid(kind, layout).steps(1)
    checkpoint.load_sharded(url, optimizer=again.optimizer)
    with torch.no_grad():
        for key, param in again.params.items():
            local_tensor(param).copy_(saved[key])
    again.done = 3
    assert_same(again.local(), saved)
    assert_same(again.steps(3).local(), run.steps(3).local())


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether values coded anew are those: half a step of the coarsest codec of a block's scale."""
    return bool(((found - expected).abs() <= 0.3 * expected.abs().max() + 1e-12).all())


def loads_everywhere(argument: str, folder: Path) -> None:
    """Load what four processes saved, in any layout, as the values that it holds."""
    kind, name, target = argument.split(",")
    url = folder / f"{kind}-{name}"
    run = Laid(kind, LAYOUTS[target]())
    checkpoint.load_sharded(url, optimizer=run.optimizer)
    opened = checkpoint.open(url)
    for state in run.optimizer.parameter_states():
        entry = opened.parameter_state(state.name)
        assert (state.step, state.noise_key) == (3, entry.noise_key), state.name
    exported = run.optimizer.export_adamw_state()["state"] if kind != "lamb" else {}
    for index, entry in exported.items():
        parameter = list(SHAPES)[index]
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = opened.read(parameter, moment)
            if expected.numel():
                assert close(whole(entry[moment]), expected), (parameter, moment)
    run.done = 3
    run.steps(2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(256)
        self.a = nn.Linear(256, 500)
        self.b = nn.Linear(500, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(self.norm(x)).relu())
        return out


def _two_dimensional(sharded: str) -> tuple[nn.Module, CompressedOptimizer]:
    shape, names = {"fsdp": ((2, 2), ("dp", "tp")), "none": ((4,), ("tp",))}[sharded]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    torch.manual_seed(0)
    model = Block()
    parallelize_module(model, mesh["tp"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
    if sharded == "fsdp":
        fully_shard(model, mesh=mesh["dp"])
    return model, TurboAdam(model.named_parameters(), lr=1e-2, seed=0)


def _train(model: nn.Module, optimizer: CompressedOptimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 256, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()


def _parts(model: nn.Module, optimizer: CompressedOptimizer) -> dict[str, Tensor]:
    found = {name: local_tensor(value).clone() for name, value in model.state_dict().items()}
    for state in optimizer.parameter_states():
        for key, value in state.fields.items():
            found[f"{state.name}/{key}"] = local_tensor(value).clone()
    return found


def tensor_parallel_resumes(sharded: str, folder: Path) -> None:
    model, optimizer = _two_dimensional(sharded)
    _train(model, optimizer, range(3))
    url = folder / f"tp-{sharded}"
    checkpoint.save_sharded(url, optimizer=optimizer, model=model)
    expected = {name: whole(value) for name, value in model.state_dict().items()}
    opened = checkpoint.open(url)
    for entry in opened.model_tensors():
        assert torch.equal(opened.read_tensor(entry), expected[entry.name]), entry.name
    other, again = _two_dimensional(sharded)
    _train(other, again, range(7, 8))
    checkpoint.load_sharded(url, optimizer=again, model=other)
    assert_same(_parts(other, again), _parts(model, optimizer))
    for pair in ((model, optimizer), (other, again)):
        _train(*pair, range(3, 6))
    assert_same(_parts(other, again), _parts(model, optimizer))
