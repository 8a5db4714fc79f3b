"""Cases of `test_checkpoint.py`: weights, asynchronous saves, numbered steps."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import whole
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from luma_core import LUMA, checkpoint
from luma_core.checkpoint import ShardedCheckpointManager
from luma_core.checkpoint.staging import staged as staging
from luma_core.checkpoint.write.coordination import group_for_saves
from luma_core.errors import CheckpointExistsError, ConfigurationError


class Tied(nn.Module):
    """Weights that are tied, uneven, and of two dtypes; a buffer that all processes have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(37, 40)
        self.inner = nn.Linear(40, 40)
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, 37, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((3,), 0.5))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.inner(self.embed(ids)).tanh()))
        return logits.square().mean()


def make(steps: int) -> tuple[nn.Module, LUMA]:
    model = Tied()
    fully_shard(model.inner)
    fully_shard(model)
    optimizer = LUMA(model.named_parameters(), lr=1e-2, seed=1, min_compress_elements=256)
    train(model, optimizer, range(steps))
    return model, optimizer


def train(model: nn.Module, optimizer: LUMA, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step * 7 + dist.get_rank())
        model(torch.randint(0, 37, (4, 9), generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model: nn.Module, optimizer: LUMA) -> dict[str, Tensor]:
    found = {name: whole(value).clone() for name, value in model.state_dict().items()}
    for state in optimizer.parameter_states():
        found |= {f"{state.name}/{key}": whole(v).clone() for key, v in state.fields.items()}
        found[f"{state.name}/step"] = torch.tensor(state.step)
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def save_weights(folder: Path) -> None:
    model, optimizer = make(3)
    manifest = checkpoint.save_sharded(folder / "w", optimizer=optimizer, model=model)
    assert manifest.aliases == {"head.weight": "embed.weight"}
    found = everything(model, optimizer)
    if dist.get_rank() == 0:
        assert checkpoint.verify(folder / "w").ok
        torch.save(found, folder / "expected.pt")


def load_weights(folder: Path) -> None:
    model, optimizer = make(1)
    checkpoint.load_sharded(folder / "w", optimizer=optimizer, model=model)
    same(everything(model, optimizer), torch.load(folder / "expected.pt"))


def save_behind_training(folder: Path) -> None:
    # State of this size would be copied in the call.
    staging.SMALL_BYTES = 0
    model, optimizer = make(3)
    before = everything(model, optimizer)
    handle = checkpoint.save_sharded(
        folder / "behind", optimizer=optimizer, model=model, extra={"step": 3}, wait=False
    )
    backend = group_for_saves(dist.group.WORLD)._get_backend(torch.device("cpu"))
    assert backend.options._timeout == timedelta(seconds=60)
    train(model, optimizer, range(3, 6))
    assert handle.result().summary.step == 3
    loaded = checkpoint.load_sharded(folder / "behind", optimizer=optimizer, model=model)
    assert loaded.extra == {"step": 3}
    same(everything(model, optimizer), before)
    handle = checkpoint.save_sharded(folder / "behind", optimizer=optimizer, wait=False)
    with pytest.raises(CheckpointExistsError, match="already"):
        handle.result()


def numbered_steps(folder: Path) -> None:
    model, optimizer = make(1)
    manager = ShardedCheckpointManager(folder / "run", keep_last=2)
    assert manager.latest() is None
    for step in (1, 2, 3):
        manager.save(step, optimizer=optimizer, model=model, wait=step % 2 == 0)
        train(model, optimizer, range(step, step + 1))
    checkpoint.wait_for_saves()
    assert manager.steps() == [2, 3]
    with pytest.raises(ConfigurationError, match="before step 3"):
        manager.save(1, optimizer=optimizer)
    manager.load(optimizer=optimizer, model=model)
    assert {state.step for state in optimizer.parameter_states()} == {3}
    assert manager.rewind(2) == [3]
    manager.load(optimizer=optimizer, model=model)
    assert {state.step for state in optimizer.parameter_states()} == {2}
