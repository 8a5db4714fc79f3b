"""Cases of `test_deltas.py`: what one process can save with, many can as well."""

import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from runs import Run, assert_same, mesh_of_world

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager, SaveOptions
from luma_core.checkpoint.format.shard import ShardWriter
from luma_core.checkpoint.write.delta_base import DeltaBase
from luma_core.errors import ConfigurationError, CorruptCheckpointError

LONG = {"long": (70_001,), "rows": (64, 130)}
"""The first is cut within a block, and stored in parts; the second in pieces."""


def _world() -> dist.ProcessGroup:
    return dist.group.WORLD


def _new(steps: int) -> Run:
    return Run("luma", mesh_of_world(), shapes=LONG).steps(steps)


def _check_state(place: Path, expected: Run) -> None:
    loaded = _new(0)
    checkpoint.load(place, optimizer=loaded.optimizer, process_group=_world())
    found, wanted = loaded.tensors(), expected.tensors()
    fields = [name for name in wanted if "/" in name]
    assert_same({name: found[name] for name in fields}, {name: wanted[name] for name in fields})


def chain(folder: Path) -> None:
    run = _new(4)
    checkpoint.save(folder / "1", optimizer=run.optimizer, process_group=_world())
    second = checkpoint.save(
        folder / "2", optimizer=run.optimizer, base=folder / "1", process_group=_world()
    )
    kinds = {(entry.box is None, entry.first_row is None) for entry in second.tensors}
    assert {(False, True), (True, False)} <= kinds
    differing = {entry.name.partition("/")[0] for entry in second.tensors if entry.deltas}
    assert (second.version, second.chain, differing) == (5, 2, set(LONG))
    run.steps(1)
    handle = checkpoint.async_save(
        folder / "3", optimizer=run.optimizer, base=folder / "2", process_group=_world()
    )
    run.steps(2)
    third = handle.result()
    assert third.chain in (1, 3)
    _check_state(folder / "2", _new(4))
    _check_state(folder / "3", _new(5))
    assert checkpoint.verify(folder / "3").ok


def another_layout_is_saved_in_full(folder: Path) -> None:
    whole = Run("luma", shapes=LONG).steps(4)
    if dist.get_rank() == 0:
        checkpoint.save(folder / "whole", optimizer=whole.optimizer)
    dist.barrier()
    run = _new(4)
    cut = checkpoint.save(
        folder / "cut", optimizer=run.optimizer, base=folder / "whole", process_group=_world()
    )
    assert (cut.base, cut.version) == (None, 4)


def numbered_steps(folder: Path) -> None:
    manager = CheckpointManager(folder / "run", max_chain=2, keep_last=3, process_group=_world())
    run = _new(4)
    for step in (1, 2, 3, 4):
        found = manager.save(step, optimizer=run.optimizer, wait=step % 2 == 1)
        if not isinstance(found, checkpoint.Manifest):
            found = found.result()
        assert found.chain == 2 - step % 2, step
    assert manager.steps() == [1, 2, 3, 4] or manager.steps() == [2, 3, 4]
    assert manager.latest(verified=True) == 4
    assert manager.async_save(5, optimizer=run.optimizer).result().chain == 1
    with pytest.raises(ConfigurationError, match="before step 5"):
        manager.save(1, optimizer=run.optimizer)
    loaded = _new(0)
    manager.load(4, optimizer=loaded.optimizer)
    assert manager.rewind(4) == [5]


def one_rank_cannot_use_the_base(folder: Path) -> None:
    """All go on together: in full where the base is the manager's choice, else by its error."""
    manager = CheckpointManager(folder / "bad", max_chain=8, process_group=_world())
    run = _new(4)
    manager.save(1, optimizer=run.optimizer)
    original = DeltaBase.reader, DeltaBase.__init__

    def cannot(*_: object) -> None:
        if dist.get_rank() == 1:
            raise CorruptCheckpointError("a chunk is damaged.")

    def unreadable(self, tensor):
        cannot()
        return original[0](self, tensor)

    def unopened(self, *given):
        cannot()
        original[1](self, *given)

    for step, patched in ((2, {"reader": unreadable}), (3, {"__init__": unopened})):
        with pytest.MonkeyPatch.context() as patch:
            for name, function in patched.items():
                patch.setattr(DeltaBase, name, function)
            assert manager.save(step, optimizer=run.optimizer).chain == 1
            place = folder / "bad" / f"again{step}"
            with pytest.raises(CorruptCheckpointError, match="a chunk is damaged"):
                checkpoint.save(
                    place,
                    optimizer=run.optimizer,
                    base=folder / "bad" / "00000001",
                    process_group=_world(),
                )
            dist.barrier()
            assert not checkpoint.exists(place)
    assert manager.save(4, optimizer=run.optimizer).chain == 2


def lanes_and_progress(folder: Path) -> None:
    run = _new(4)
    meeting = threading.Barrier(2, timeout=30)
    seen: list[tuple[int, int]] = []
    original = ShardWriter.write

    def write(self, name, kind, tensors):
        meeting.wait()
        return original(self, name, kind, tensors)

    options = SaveOptions(
        max_shard_bytes=1, progress=lambda done, total: seen.append((done, total))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write", write)
        manifest = checkpoint.save(
            folder / "lanes", optimizer=run.optimizer, options=options, process_group=_world()
        )
    assert len(list(manifest.files_of("optimizer"))) == len(manifest.tensors) >= 4
    done = [one for one, _ in seen]
    assert done == sorted(done)
    assert (seen[0][0], {total for _, total in seen}) == (0, {done[-1]})


def refused(folder: Path) -> None:
    opened = checkpoint.open(folder / "1")
    with pytest.raises(ConfigurationError, match="must be an optimizer"):
        checkpoint.save(folder / "no", optimizer=opened, process_group=_world())
    with pytest.raises(ConfigurationError, match="must be an optimizer"):
        checkpoint.load(folder / "1", process_group=_world())
    with pytest.raises(ConfigurationError, match="progress="):
        checkpoint.load(folder / "1", progress=print, process_group=_world())
