"""State on disk: what a failing disk, a second process and the end of this one leave behind."""

import copy
import errno
import fcntl
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA, checkpoint
from luma_core.direct import PAGE_BYTES
from luma_core.errors import StorageError
from luma_core.optim.offload import files
from luma_core.optim.offload.arena import DIRECT_BYTES, HostArena
from luma_core.optim.offload.file_movers import FileMover
from luma_core.optim.offload.files import FileArena

from .offloaded import BUFFER_BYTES, assert_same, bits, named_parameters, resident, take_steps

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def on_disk(named: list[tuple[str, nn.Parameter]], folder: Path, **options: Any) -> LUMA:
    chosen = {"offload_buffer_bytes": BUFFER_BYTES, **options}
    return LUMA(named, lr=1e-2, seed=3, offload="disk", offload_directory=folder, **chosen)


def large_parameters() -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(900, 1000), (1100, 300), (800, 1000)]
    return [
        (f"w.{index}", nn.Parameter(torch.randn(shape, generator=generator)))
        for index, shape in enumerate(shapes)
    ]


def take_large_steps(named: list[tuple[str, nn.Parameter]], optimizer: LUMA) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for _, param in named:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("refused", ["nothing", "opening", "transfers"])
def test_large_runs_pass_by_the_page_cache_where_that_can_be(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused == "opening":
        monkeypatch.setattr(files, "opened_directly", lambda path, mode: None)
    direct = 0
    moved = os.preadv

    def counted(file: int, buffers: Any, offset: int) -> int:
        nonlocal direct
        if flags(file) & os.O_DIRECT:
            direct += 1
            if refused == "transfers":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return moved(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    found = []
    for options in ({}, {"offload": "disk", "offload_directory": tmp_path}):
        named = large_parameters()
        optimizer = LUMA(named, seed=3, offload_buffer_bytes=8 << 20, **options)
        take_large_steps(named, optimizer)
        found.append(bits(named, optimizer))
    assert_same(found[1], found[0])
    assert direct > 0 if has_direct(tmp_path / "probe") else direct == 0


def test_a_save_passes_by_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = FileArena.read

    def noted(self: FileArena, first: int, memory: torch.Tensor) -> None:
        assert (memory.data_ptr() - first) % PAGE_BYTES == 0
        read.append(memory.numel())
        plain(self, first, memory)

    named = large_parameters()
    optimizer = on_disk(named, tmp_path / "s", offload_buffer_bytes=8 << 20)
    take_large_steps(named, optimizer)
    entries = optimizer.state_dict()["state"]
    with monkeypatch.context() as patched:
        patched.setattr(FileArena, "read", noted)
        checkpoint.save(tmp_path / "c", optimizer=optimizer)
    large = [v.nbytes for e in entries.values() for v in e.values() if v.nbytes >= 1 << 20]
    assert sum(read) == sum(large) > 0
    other = LUMA(large_parameters())
    checkpoint.load(tmp_path / "c", optimizer=other)
    for index, entry in other.state_dict()["state"].items():
        assert_same(entry, entries[index])


def has_direct(path: Path) -> bool:
    path.touch()
    file = files.opened_directly(path, "r+b")
    if file is not None:
        file.close()
    return file is not None


def flags(file: int) -> int:
    return fcntl.fcntl(file, fcntl.F_GETFL)


@pytest.mark.parametrize("shift", [0, 256, PAGE_BYTES - 16])
def test_what_is_written_is_read_and_mapped(shift: int, tmp_path: Path) -> None:
    arena = FileArena(tmp_path / "state", 4 * DIRECT_BYTES)
    arena.bytes.fill_(7)
    size = 2 * DIRECT_BYTES + 100
    memory = HostArena(size + shift, pin=False).bytes[shift : shift + size]
    memory.copy_(torch.randint(256, (size,), dtype=torch.uint8))
    for first in (shift, shift + 48, shift + PAGE_BYTES):
        arena.write(first, memory)
        assert torch.equal(arena.bytes[first : first + size], memory)
        assert int(arena.bytes[first + size]) in (7, int(memory[-48 if first == shift else -1]), 7)
        read = torch.zeros_like(memory)
        arena.read(first, read)
        assert torch.equal(read, memory)
    arena.bytes[shift + PAGE_BYTES + 5] += 1
    read = HostArena(size + shift, pin=False).bytes[shift : shift + size]
    arena.read(shift + PAGE_BYTES, read)
    assert int(read[5]) == (int(memory[5]) + 1) % 256


def test_memory_that_a_disk_reads_and_writes_begins_with_a_huge_page() -> None:
    """Where it does not, or lies in memory that may be shared, Linux gives it small pages."""
    slot = FileMover(lambda _: pytest.fail("no arena is asked for")).slot(5 << 20)
    assert slot.numel() == 5 << 20
    assert slot.data_ptr() % (2 << 20) == 0
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = next(line for line in maps if holds(line, slot.data_ptr()))
    assert mapped.split()[1] == "rw-p"


def holds(line: str, address: int) -> bool:
    first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
    return first <= address < last


OTHER_PROCESS = """
import os, signal, sys, torch
from luma_core import LUMA
from luma_core.errors import StorageError
param = torch.nn.Parameter(torch.zeros(300, 300))
param.grad = torch.ones_like(param)
try:
    LUMA([param], offload="disk", offload_directory=sys.argv[1])
except StorageError as error:
    print(error, flush=True)
optimizer = LUMA([param], offload="disk", offload_directory=sys.argv[2])
optimizer.step()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_another_process_is_refused_and_leaves_nothing_when_it_is_killed(tmp_path: Path) -> None:
    used, free = tmp_path / "used", tmp_path / "free"
    first = on_disk(named_parameters(), used)
    killed = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, used, free],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -9
    assert f"{str(used)!r} is in use by another optimizer" in killed.stdout
    assert [path.name for path in free.iterdir()] == [".lock"]
    named = named_parameters()
    take_steps(named, on_disk(named, free), range(1))
    take_steps(named, first, range(1))


def test_the_directory_is_of_one_optimizer_at_a_time(tmp_path: Path) -> None:
    first = on_disk(named_parameters(), tmp_path)
    with pytest.raises(StorageError, match="in use by another optimizer") as caught:
        on_disk(named_parameters(), tmp_path)
    assert "directory of its own" in caught.value.hint
    del first, caught
    # A process that is killed between two lines of code can leave a name.
    (tmp_path / "state-1.luma-offload").write_bytes(b"left")
    # Nothing but the next one's asking for the directory makes Python collect the first.
    named = named_parameters()
    take_steps(named, on_disk(named, tmp_path), range(1))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        on_disk(named_parameters(), tmp_path / "file" / "state")


def test_a_disk_without_room_stops_the_first_step_before_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, first: int, size: int) -> None:
        raise FULL

    named = named_parameters()
    before = [param.detach().clone() for _, param in named]
    optimizer = on_disk(named, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match=r"[\d,]+ bytes of optimizer state cannot be kept"):
            take_steps(named, optimizer, range(1))
    assert all(torch.equal(param, b) for (_, param), b in zip(named, before, strict=True))
    assert not any(int(entry["step"]) for entry in optimizer.state.values())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    take_steps(named, optimizer, range(2))
    assert_same(bits(named, optimizer), resident("luma", 2))


def failing(call: Callable[..., int], *, after: int) -> Callable[..., int]:
    """Return a call that fails from the call number ``after`` on."""
    made = 0

    def fail(*arguments: Any) -> int:
        nonlocal made
        made += 1
        if made > after:
            raise FULL
        return call(*arguments)

    return fail


@pytest.mark.parametrize("buffer_bytes", [BUFFER_BYTES, 64 << 20])
def test_a_disk_that_fails_in_the_middle_says_so_until_state_is_loaded(
    buffer_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With state that comes and goes, and with state that stays in its slots all the time."""
    named = named_parameters()
    optimizer = on_disk(named, tmp_path, offload_buffer_bytes=buffer_bytes)
    take_steps(named, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    params = [param.detach().clone() for _, param in named]
    told = "could not be written: No space left on device. Parameters and state may be of different"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", failing(os.pwritev, after=3))
        with pytest.raises(StorageError, match=told) as caught:
            take_steps(named, optimizer, range(2, 20))
        assert "load the last checkpoint" in caught.value.hint
    for attempt in (lambda: take_steps(named, optimizer, range(2, 3)), optimizer.state_dict):
        with pytest.raises(StorageError, match=told):
            attempt()
    with torch.no_grad():
        for (_, param), value in zip(named, params, strict=True):
            param.copy_(value)
    optimizer.load_state_dict(saved)
    take_steps(named, optimizer, range(2, 5))
    assert_same(bits(named, optimizer), resident("luma", 5))


@pytest.mark.parametrize("buffer_bytes", [BUFFER_BYTES, 64 << 20])
def test_slow_writes_are_waited_for_when_other_parameters_have_gradients(
    buffer_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth step lacks a gradient, so state is in other chunks from then on."""
    write = os.pwritev

    def slowly(*arguments: Any) -> int:
        time.sleep(0.02)
        return write(*arguments)

    monkeypatch.setattr(os, "pwritev", slowly)
    named = named_parameters()
    optimizer = on_disk(named, tmp_path, offload_buffer_bytes=buffer_bytes)
    take_steps(named, optimizer, range(5))
    assert_same(bits(named, optimizer), resident("luma", 5))


def test_a_disk_that_cannot_be_read_stops_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = named_parameters()
    optimizer = on_disk(named, tmp_path)
    take_steps(named, optimizer, range(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", lambda *_: 0)
        with pytest.raises(StorageError, match="could not be read: the file ends early"):
            take_steps(named, optimizer, range(1, 3))


def test_files_and_threads_go_with_the_optimizer(tmp_path: Path) -> None:
    others = set(threading.enumerate())
    named = named_parameters()
    optimizer = on_disk(named, tmp_path)
    take_steps(named, optimizer, range(2))
    optimizer.state_dict()
    own = set(threading.enumerate()) - others
    assert own
    assert len(open_files(tmp_path)) >= 2
    del optimizer
    gc.collect()
    for thread in own:
        thread.join(10)
    assert not any(thread.is_alive() for thread in own)
    assert not open_files(tmp_path)


def open_files(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open, also those without a name."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        # The file of this list itself is closed by now.
        with suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return [target for target in found if target.startswith(str(folder))]
