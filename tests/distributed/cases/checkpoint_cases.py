"""Cases of `test_checkpoint.py`: our own format, written and read by several processes."""

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist
from runs import SHAPES, Run, assert_same, mesh_of_world
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from luma_core import checkpoint
from luma_core.checkpoint.format.shard import ShardWriter
from luma_core.errors import CheckpointExistsError, StateMismatchError, StorageError

BEFORE, AFTER = 4, 10
LONG = {"long": (70_001,)}


def save(kind: str, folder: Path) -> None:
    run = Run(kind, mesh_of_world()).steps(BEFORE)
    manifest = checkpoint.save_sharded(folder / kind, optimizer=run.optimizer, extra={"step": 4})
    assert manifest.summary.step == BEFORE
    writers = {file.name for file in manifest.files_of("optimizer")}
    assert len(writers) == dist.get_world_size()


def load(kind: str, folder: Path) -> None:
    run = Run(kind, mesh_of_world())
    loaded = checkpoint.load_sharded(folder / kind, optimizer=run.optimizer)
    assert loaded.extra == {"step": 4}
    expected = Run(kind).steps(BEFORE)
    for name, param in run.params.items():
        param.data.copy_(run._place(expected.params[name].detach()))
    run.done = BEFORE
    assert_same(run.tensors(), expected.tensors())
    assert_same(run.steps(AFTER).tensors(), expected.steps(AFTER).tensors())


def save_replicas(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    run = Run("luma", mesh, [Replicate(), Shard(0)]).steps(BEFORE)
    checkpoint.save_sharded(folder / "luma", optimizer=run.optimizer, extra={"step": 4})


def save_columns(folder: Path) -> None:
    run = Run("turbo_5bit", mesh_of_world(), [Shard(1)]).steps(BEFORE)
    checkpoint.save_sharded(folder / "columns", optimizer=run.optimizer, overwrite=True)


def load_cut_blocks(folder: Path) -> None:
    run = Run("luma", mesh_of_world(), shapes=LONG).steps(BEFORE)
    before = run.optimizer.export_adamw_state()["state"][0]
    checkpoint.save_sharded(folder / "long", optimizer=run.optimizer, overwrite=True)
    checkpoint.load_sharded(folder / "long", optimizer=run.optimizer)
    after = run.optimizer.export_adamw_state()["state"][0]
    for moment in ("exp_avg", "exp_avg_sq"):
        old, new = (entry[moment].to_local() for entry in (before, after))
        assert ((old - new).abs() <= 2**-9 * old.abs() + 2**-25 * old.abs().max()).all()


def refused(folder: Path) -> None:
    run = Run("luma", mesh_of_world()).steps(1)
    with pytest.raises(CheckpointExistsError, match="already"):
        checkpoint.save_sharded(folder / "luma", optimizer=run.optimizer)
    other = Run("luma", mesh_of_world(), shapes={**SHAPES, "norm.weight": (6,)})
    with pytest.raises(StateMismatchError, match=r"norm\.weight"):
        checkpoint.load_sharded(folder / "luma", optimizer=other.optimizer)
    assert not other.optimizer.state


def one_fails(folder: Path) -> None:
    run = Run("luma", mesh_of_world()).steps(1)
    original = ShardWriter.write

    def fail(self, name, kind, tensors):
        if dist.get_rank() == 1:
            raise OSError(28, "No space left on device")
        return original(self, name, kind, tensors)

    ShardWriter.write = fail
    try:
        with pytest.raises((StorageError, OSError), match="No space"):
            checkpoint.save_sharded(folder / "luma", optimizer=run.optimizer, overwrite=True)
    finally:
        ShardWriter.write = original


def _saved_behind(url: Path, **options: object) -> None:
    checkpoint.save_sharded(url, wait=False, **options).result()


def one_is_killed(how: str, folder: Path) -> None:
    run = Run("luma", mesh_of_world()).steps(1)
    original = ShardWriter.write

    def die(self, name, kind, tensors):
        found = original(self, name, kind, tensors)
        if dist.get_rank() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    ShardWriter.write = die
    save = {"held": checkpoint.save_sharded, "behind": _saved_behind}[how]
    with pytest.raises(StorageError, match="lost another"):
        save(folder / "luma", optimizer=run.optimizer, overwrite=True)
    (folder / f"survived-{dist.get_rank()}").touch()
    os._exit(0)
