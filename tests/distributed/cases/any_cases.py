"""Cases of `test_any_optimizer.py`: PyTorch's optimizers over parameters that FSDP2 cuts."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from luma_core import checkpoint
from luma_core.errors import ConfigurationError


def _model(seed: int, *, sharded: bool) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 3))
    return fully_shard(model) if sharded else model


def _trained(model: nn.Module) -> optim.AdamW:
    optimizer = optim.AdamW(model.named_parameters(), lr=0.1)
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        model(torch.randn(4, 10, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _assert_same_state(a: optim.Optimizer, b: optim.Optimizer) -> None:
    pairs = zip(a.state.values(), b.state.values(), strict=True)
    for one, other in pairs:
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert _whole(value).equal(_whole(other[key])), key


def sharded_and_back(folder: Path) -> None:
    model = _model(1, sharded=True)
    optimizer = _trained(model)
    manifest = checkpoint.save(
        folder / "any", optimizer=optimizer, model=model, process_group=dist.group.WORLD
    )
    assert any(entry.first_row for entry in manifest.tensors)
    again = _model(2, sharded=True)
    loaded = optim.AdamW(again.named_parameters(), lr=0.5)
    checkpoint.load(folder / "any", optimizer=loaded, model=again, process_group=dist.group.WORLD)
    assert loaded.param_groups[0]["lr"] == 0.1
    _assert_same_state(loaded, optimizer)
    alone = optim.AdamW(_model(3, sharded=False).named_parameters())
    checkpoint.load(folder / "any", optimizer=alone)
    _assert_same_state(alone, optimizer)
    assert checkpoint.verify(folder / "any").ok


def alone_is_refused(folder: Path) -> None:
    optimizer = _trained(_model(1, sharded=True))
    with pytest.raises(ConfigurationError, match="sharded over processes"):
        checkpoint.save(folder / "no", optimizer=optimizer)
