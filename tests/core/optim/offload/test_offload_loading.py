"""Loading into a file: a new one beside the old, little memory, and nothing changes if it fails."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint
from luma_core.errors import CorruptCheckpointError, LumaError, StorageError
from luma_core.optim.offload import Offloader
from luma_core.optim.offload.arena import HostArena

from .offloaded import BUFFER_BYTES, assert_same, bits, named_parameters, resident, take_steps

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

Named = list[tuple[str, nn.Parameter]]


def on_disk(named: Named, folder: Path) -> LUMA:
    return LUMA(
        named,
        lr=1e-2,
        seed=3,
        offload="disk",
        offload_directory=folder,
        offload_buffer_bytes=BUFFER_BYTES,
    )


def trained(folder: Path, steps: int) -> tuple[Named, LUMA]:
    named = named_parameters()
    optimizer = on_disk(named, folder)
    take_steps(named, optimizer, range(steps))
    return named, optimizer


def in_arenas(optimizer: LUMA) -> bool:
    """Return whether all stored tensors are in the optimizer's blocks, and each of these in use."""
    assert optimizer.offloader is not None
    blocks = {arena.bytes.untyped_storage().data_ptr() for arena in optimizer.offloader._arenas}
    used = {
        value.untyped_storage().data_ptr()
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if "." in key
    }
    return used == blocks


def adopt_parameters(named: Named, source: Named) -> None:
    with torch.no_grad():
        for (_, param), (_, value) in zip(named, source, strict=True):
            param.copy_(value)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("how", ["load", "state_dict"])
def test_what_is_loaded_is_in_one_new_file_at_once(
    how: str, compression: Any, fresh: bool, tmp_path: Path
) -> None:
    source, first = trained(tmp_path / "first", 3)
    named, optimizer = trained(tmp_path / "second", 0 if fresh else 2)
    if how == "load":
        checkpoint.save(tmp_path / "c", optimizer=first, compression=compression)
        checkpoint.load(tmp_path / "c", optimizer=optimizer)
    else:
        optimizer.load_state_dict(first.state_dict())
    assert in_arenas(optimizer)
    assert optimizer.offloader is not None
    assert len(optimizer.offloader._arenas) == 1
    adopt_parameters(named, source)
    take_steps(named, optimizer, range(3, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))


def test_what_was_loaded_is_of_the_checkpoint_before_any_step(tmp_path: Path) -> None:
    source, first = trained(tmp_path / "first", 3)
    checkpoint.save(tmp_path / "c", optimizer=first)
    named, optimizer = trained(tmp_path / "second", 1)
    checkpoint.load(tmp_path / "c", optimizer=optimizer)
    adopt_parameters(named, source)
    assert_same(bits(named, optimizer), bits(source, first))


def test_loading_by_blocks_of_the_hosts_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Offloader, "takes", lambda *_: True)
    source, first = trained(tmp_path / "first", 3)
    checkpoint.save(tmp_path / "c", optimizer=first)
    named = named_parameters()
    optimizer = LUMA(named, lr=1e-2, offload="host", offload_buffer_bytes=BUFFER_BYTES)
    take_steps(named, optimizer, range(1))
    checkpoint.load(tmp_path / "c", optimizer=optimizer)
    assert in_arenas(optimizer)
    assert optimizer.offloader is not None
    assert [type(arena) for arena in optimizer.offloader._arenas] == [HostArena]
    adopt_parameters(named, source)
    take_steps(named, optimizer, range(3, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))


def no_room(*_: Any) -> None:
    raise FULL


def spoil(folder: Path) -> None:
    path = next(folder.glob("optimizer-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


FAILURES: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], None], type[LumaError], str]] = {
    "no room for a new file": (
        lambda patch, _: patch.setattr(os, "posix_fallocate", no_room),
        StorageError,
        "optimizer state cannot be kept in .*: No space left on device",
    ),
    "the disk fails": (
        lambda patch, _: patch.setattr(os, "pwritev", no_room),
        StorageError,
        "state could not be written to .*: No space left on device",
    ),
    "a changed byte": (lambda _, folder: spoil(folder), CorruptCheckpointError, "SHA-256"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_cannot_be_loaded_changes_nothing(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = trained(tmp_path / "other", 7)
    checkpoint.save(tmp_path / "c", optimizer=other, compression="none")
    named, optimizer = trained(tmp_path / "own", 3)
    # Nothing of the last step is to be written any more.
    optimizer.state_dict()
    spoiled, error, told = FAILURES[failure]
    with monkeypatch.context() as patch:
        spoiled(patch, tmp_path / "c")
        with pytest.raises(error, match=told):
            checkpoint.load(tmp_path / "c", optimizer=optimizer)
    take_steps(named, optimizer, range(3, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))


PEAK = """
import json, sys, threading
from pathlib import Path
import torch
from luma_core import LUMA, checkpoint

def unnamed_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))

def peak(action):
    before, most, ended = unnamed_bytes(), 0, threading.Event()
    def watch():
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, unnamed_bytes())
    thread = threading.Thread(target=watch)
    thread.start()
    action()
    ended.set()
    thread.join()
    return most - before

root = Path(sys.argv[1])
whole = torch.zeros(3000, 2000)
params = [(f"w.{i}", torch.nn.Parameter(whole.view_as(whole))) for i in range(8)]
for _, param in params:
    param.grad = whole
optimizer = LUMA(
    params, seed=0, offload="disk", offload_directory=root / "s", offload_buffer_bytes=8 << 20
)
optimizer.step()
options = {"max_memory_bytes": 128 << 20}
save = lambda: checkpoint.save(
    root / "c", optimizer=optimizer, compression="none", max_shard_bytes=48 << 20, **options
)
load = lambda: checkpoint.load(root / "c", optimizer=optimizer, **options)
state_dict = lambda: optimizer.load_state_dict(optimizer.state_dict())
print(json.dumps({"save": peak(save), "load": peak(load), "state_dict": peak(state_dict)}))
"""

STATE_BYTES = 8 * 3000 * 2000 * 4
"""A little less than it is."""


def test_neither_saving_nor_loading_takes_memory_for_state(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path], stdout=subprocess.PIPE, text=True, check=True
    )
    peaks = json.loads(done.stdout)
    assert peaks.keys() == {"save", "load", "state_dict"}
    assert all(size < STATE_BYTES // 2 for size in peaks.values()), peaks
