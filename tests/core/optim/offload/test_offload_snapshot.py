"""State on disk is frozen for a save where files can be cloned, and steps go on.

Whether the system's temporary folder can do that or not, a clone that is a copy shows what becomes
of one. A folder of a file system that has them (XFS, Btrfs) is taken from LUMA_CLONES_FOLDER.
"""

import errno
import fcntl
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LUMA, checkpoint
from luma_core.optim.offload import files
from luma_core.optim.offload.files import FileArena

from .offloaded import BUFFER_BYTES, assert_same, bits, named_parameters, resident, take_steps

Named = list[tuple[str, nn.Parameter]]


def has_clones(folder: Path) -> bool:
    try:
        with (folder / "a").open("w+b") as source, (folder / "b").open("wb") as target:
            source.write(bytes(4096))
            source.flush()
            fcntl.ioctl(target.fileno(), files._FICLONE, source.fileno())
    except OSError:
        return False
    return True


def copied(self: FileArena, file: int) -> Tensor:
    os.truncate(file, self.bytes.numel())
    with os.fdopen(os.dup(file), "wb") as target:
        target.write(self.bytes.numpy().data)
    size = self.bytes.numel()
    return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8)


@pytest.fixture(params=["copied", "cloned"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder whose files can be cloned, or seem to."""
    if request.param == "copied":
        monkeypatch.setattr(FileArena, "cloned_to", copied)
        yield tmp_path
        return
    root = Path(os.environ.get("LUMA_CLONES_FOLDER", tmp_path))
    made = Path(tempfile.mkdtemp(dir=root))
    try:
        if not has_clones(made):
            pytest.skip(f"{root} has no clones of files")
        (made / "state").mkdir()
        yield made / "state"
    finally:
        shutil.rmtree(made)


def on_disk(named: Named, folder: Path) -> LUMA:
    return LUMA(
        named,
        lr=1e-2,
        seed=3,
        offload="disk",
        offload_directory=folder,
        offload_buffer_bytes=BUFFER_BYTES,
    )


def stored(optimizer: LUMA) -> list[Tensor]:
    entries = optimizer.state_dict()["state"].values()
    return [value for entry in entries for key, value in entry.items() if "." in key]


def test_a_snapshot_stays_while_steps_go_on(folder: Path) -> None:
    named = named_parameters()
    optimizer = on_disk(named, folder)
    take_steps(named, optimizer, range(2))
    snapshot = optimizer.state_snapshot()
    assert snapshot is not None
    live = stored(optimizer)
    before = [value.clone() for value in live]
    take_steps(named, optimizer, range(2, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))
    for value, old in zip(live, before, strict=True):
        frozen = snapshot(value)
        assert frozen is not None
        assert torch.equal(frozen, old)
    assert not all(torch.equal(value, old) for value, old in zip(live, before, strict=True))
    assert snapshot(torch.zeros(3)) is None
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_step_does_not_wait_for_a_save_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save cannot go on before the steps are taken, and has the state from before them."""
    may_go_on = threading.Event()
    call = checkpoint.format.shard.raw_chunks

    def held(*arguments: Any) -> Any:
        assert may_go_on.wait(60)
        return call(*arguments)

    monkeypatch.setattr(checkpoint.format.shard, "raw_chunks", held)
    named = named_parameters()
    optimizer = on_disk(named, folder / "s")
    take_steps(named, optimizer, range(3))
    before = [(name, nn.Parameter(param.detach().clone())) for name, param in named]
    handle = checkpoint.save(folder / "c", optimizer=optimizer, wait=False)
    take_steps(named, optimizer, range(7, 9))
    optimizer.state_dict()
    may_go_on.set()
    handle.result()
    again = on_disk(before, folder / "t")
    checkpoint.load(folder / "c", optimizer=again)
    take_steps(before, again, range(3, 5))
    assert_same(bits(before, again), resident("luma", 5))


def test_the_room_of_a_snapshot_is_given_back(folder: Path) -> None:
    named = named_parameters()
    optimizer = on_disk(named, folder)
    take_steps(named, optimizer, range(1))
    snapshot = optimizer.state_snapshot()
    assert snapshot is not None
    frozen = snapshot(stored(optimizer)[0])
    mapped = mappings(folder)
    del snapshot
    assert mappings(folder) == mapped
    del frozen
    gc.collect()
    assert mappings(folder) == mapped - 1


def mappings(folder: Path) -> int:
    """Return how many files below a folder are mapped."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def refused(*_: Any) -> Tensor:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class Full:
    """What `os.statvfs` tells of a disk with room for two pages."""

    f_frsize = 4096
    f_bavail = 2


@pytest.mark.parametrize("why", ["no clones", "no room"])
def test_there_is_none_where_files_cannot_be_cloned(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileArena, "cloned_to", refused if why == "no clones" else copied)
    if why == "no room":
        monkeypatch.setattr(os, "statvfs", lambda _: Full)
    named = named_parameters()
    optimizer = on_disk(named, tmp_path)
    take_steps(named, optimizer, range(2))
    assert optimizer.state_snapshot() is None
    take_steps(named, optimizer, range(2, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_state_in_memory_has_none() -> None:
    named = named_parameters()
    assert LUMA(named).state_snapshot() is None
    assert LUMA(named, offload="host").state_snapshot() is None
