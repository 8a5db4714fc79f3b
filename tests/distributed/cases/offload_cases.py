"""Cases of `test_offload.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import SHAPES, Run, assert_same, mesh_of_world
from torch import nn
from torch.distributed.fsdp import fully_shard

from luma_core import LAMB, LUMA, TurboAdam, checkpoint
from luma_core.errors import ConfigurationError
from luma_core.optim import step_in_backward
from luma_core.sharding import local_tensor

LARGE = {**SHAPES, "layers.1.up_proj.weight": (501, 600), "long": (2 * 128 * 400,)}
"""With some whose parts do not fit a slot."""

BUFFER_BYTES = 1 << 20


def offloaded(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """Return options for state on disk, in a directory of this process."""
    return {
        "seed": 3,
        "offload": "disk",
        "offload_directory": folder / f"{name}-{dist.get_rank()}",
        "offload_buffer_bytes": BUFFER_BYTES,
        **options,
    }


def tensors(run: Run) -> dict[str, torch.Tensor]:
    run.optimizer.state_dict()
    return run.tensors()


def same_bits(kind: str, folder: Path) -> None:
    build: Any = {"luma": LUMA, "turbo_5bit": TurboAdam}[kind]
    run = Run(kind, mesh_of_world(), shapes=LARGE)
    run.optimizer = build(run.params.items(), **offloaded(folder, kind))
    expected = Run(kind, mesh_of_world(), shapes=LARGE).steps(4)
    assert_same(tensors(run.steps(4)), expected.tensors())


def saved_and_loaded(folder: Path) -> None:
    first = Run("luma", mesh_of_world(), shapes=LARGE)
    first.optimizer = LUMA(first.params.items(), **offloaded(folder, "first"))
    first.steps(2)
    checkpoint.save_sharded(folder / "c", optimizer=first.optimizer)
    second = Run("luma", mesh_of_world(), shapes=LARGE)
    second.optimizer = LUMA(second.params.items(), **offloaded(folder, "second"))
    second.steps(1)
    checkpoint.load_sharded(folder / "c", optimizer=second.optimizer)
    with torch.no_grad():
        for name, param in second.params.items():
            param.copy_(first.params[name])
    second.done = 2
    assert_same(
        tensors(second.steps(2)), Run("luma", mesh_of_world(), shapes=LARGE).steps(4).tensors()
    )


def pieces_are_loaded_in_place(folder: Path) -> None:
    """One process loads what all of them wrote in pieces."""
    run = Run("luma", mesh_of_world(), shapes=LARGE).steps(2)
    checkpoint.save_sharded(folder / "pieces", optimizer=run.optimizer)
    found = []
    for options in ({"seed": 3}, offloaded(folder, "whole")):
        whole = {name: nn.Parameter(torch.zeros(shape)) for name, shape in LARGE.items()}
        optimizer = LUMA(whole.items(), **options)
        checkpoint.load(folder / "pieces", optimizer=optimizer)
        entries = optimizer.state_dict()["state"].items()
        found.append({f"{i} {key}": v.clone() for i, entry in entries for key, v in entry.items()})
    assert_same(found[1], found[0])


def fully_sharded(folder: Path) -> None:
    found = []
    for options in ({"seed": 3}, offloaded(folder, "fsdp")):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(300, 700), nn.Tanh(), nn.LayerNorm(700), nn.Linear(700, 33))
        fully_shard(model[0])
        fully_shard(model)
        optimizer = LUMA(model.named_parameters(), lr=1e-2, **options)
        steps = step_in_backward(model, optimizer)
        for step in range(4):
            if step == 2:
                steps.remove()
            generator = torch.Generator().manual_seed(step * 7 + dist.get_rank())
            model(torch.randn(16, 300, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        entries = optimizer.state_dict()["state"]
        found.append({})
        for index, (name, param) in enumerate(model.named_parameters()):
            kept = {"param": param.detach(), **entries[index]}
            found[-1] |= {f"{name} {key}": local_tensor(v).clone() for key, v in kept.items()}
    assert_same(found[1], found[0])


def steps_together_are_refused(folder: Path) -> None:
    builds: dict[str, Any] = {"lamb": LAMB, "whole": LUMA}
    for name, build in builds.items():
        run = Run("luma", mesh_of_world())
        options = offloaded(folder, name)
        if name == "whole":
            options["block_size"] = None
        run.optimizer = build(run.params.items(), **options)
        before = {key: param.detach().to_local().clone() for key, param in run.params.items()}
        with pytest.raises(ConfigurationError, match="needs parts that other processes have"):
            run.steps(1)
        after = {key: param.detach().to_local() for key, param in run.params.items()}
        assert_same(after, before)
