"""State in files: the directory, and arenas that are mapped and read and written beside that."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from luma_core import mapped
from luma_core.direct import PAGE_BYTES, is_refusal, opened_directly, transfer_memory
from luma_core.errors import StorageError
from luma_core.optim.offload.arena import DIRECT_BYTES

# Of linux/fs.h; Python has a name for it from 3.12 on, where the system does.
_FICLONE = getattr(fcntl, "FICLONE", 0x40049409)

_NAME = "state-{}.luma-offload"

Call = Callable[[int, Sequence[memoryview], int], int]
"""`os.preadv` or `os.pwritev`."""


class Folder:
    """A directory that one optimizer at a time keeps its state in.

    What is in it is of use only to the process that wrote it: files of an earlier one are removed.

    Raises:
        StorageError: another optimizer, of this or another process, uses the directory, or it
            cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, lock)
            _lock(lock)
            for left in path.glob(_NAME.format("*")):
                left.unlink()
        except BlockingIOError as error:
            raise StorageError(
                f"offload_directory={str(path)!r} is in use by another optimizer.",
                hint="Give each optimizer of each process a directory of its own.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"offload_directory={str(path)!r} cannot be used: {error.strerror}.",
                hint="Name a directory of a local disk with room for the state.",
            ) from error

    def arena(self, size: int) -> FileArena:
        """Return a new file of zeros."""
        return FileArena(self._new_path(), size)

    def clone(self, arena: FileArena) -> Tensor | None:
        """Return the bytes of an arena as they are now, in a file that shares its blocks.

        ``None`` where the file system has no such files, or too little room: the arena's writes go
        to new blocks as long as there is a clone, and whatever the clone is read for may be written
        to the same disk.
        """
        try:
            found = os.statvfs(self.path)
            if found.f_bavail * found.f_frsize < 2 * arena.bytes.numel():
                return None
            file = _unnamed(self._new_path())
            try:
                return arena.cloned_to(file)
            finally:
                # What is mapped stays.
                os.close(file)
        except OSError:
            return None

    def _new_path(self) -> Path:
        self._made += 1
        return self.path / _NAME.format(self._made)


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # An optimizer that nobody has any more may be part of somebody's cycle, and hold it still.
        gc.collect()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileArena:
    """A file of zeros whose blocks are all reserved, mapped into memory.

    The file has no name any more once it is open, so that nothing of it outlives the process.
    `read` and `write` pass by the page cache where the file system can do that, so that state
    takes no more memory than its buffers; what is mapped shows the same bytes.

    Attributes:
        lost: why the bytes are not those that were to be kept; ``None`` as long as they are.

    Raises:
        StorageError: the disk has no room for it, or the file cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        size = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.lost: StorageError | None = None
        self._folder = str(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            weakref.finalize(self, os.close, self._file)
            try:
                self._direct = opened_directly(path, "r+b")
            finally:
                path.unlink()
            if self._direct is not None:
                weakref.finalize(self, self._direct.close)
            os.posix_fallocate(self._file, 0, size)
            self.bytes = _mapped(self._file, size)
        except OSError as error:
            raise StorageError(
                f"{size:,} bytes of optimizer state cannot be kept in {self._folder!r}: "
                f"{error.strerror}.",
                hint="Free the space, or name another offload_directory; nothing was changed.",
            ) from error
        mapped.register(self)

    def cloned_to(self, file: int) -> Tensor:
        """Let another, empty file share all blocks, and return its bytes.

        Raises:
            OSError: the file system cannot do that.
        """
        fcntl.ioctl(file, _FICLONE, self._file)
        return _mapped(file, self.bytes.numel())

    def intake(self) -> FileIntake:
        """Return what writes all of the bytes, while no optimizer uses them yet."""
        return FileIntake(self)

    def fill(self, first: int, memory: Tensor) -> None:
        """Write bytes that no optimizer uses yet.

        Raises:
            StorageError: the disk failed.
        """
        try:
            self._moved(os.pwritev, first, memory)
        except OSError as error:
            raise StorageError(
                f"state could not be written to {self._folder!r}: {error.strerror}.",
                hint="Mend the disk and load again; nothing was changed.",
            ) from error

    def check(self) -> None:
        """Raise `StorageError` if some of the bytes were lost; anew, as its traceback has this."""
        if self.lost is not None:
            raise StorageError(self.lost.message, hint=self.lost.hint)

    def read(self, first: int, memory: Tensor) -> None:
        """Read bytes from ``first`` on, as many as ``memory`` (uint8, of the host) has.

        Raises:
            StorageError: the disk failed, now or before.
        """
        self._move(os.preadv, first, memory, "read")

    def write(self, first: int, memory: Tensor) -> None:
        """Write all of ``memory`` from ``first`` on.

        Raises:
            StorageError: the disk failed, now or before.
        """
        self._move(os.pwritev, first, memory, "written")

    def _move(self, call: Call, first: int, memory: Tensor, what: str) -> None:
        self.check()
        try:
            self._moved(call, first, memory)
        except OSError as error:
            self.lost = StorageError(
                f"offloaded state could not be {what}: {error.strerror}. Parameters and state may "
                "be of different steps now.",
                hint="Mend the disk and load the last checkpoint.",
            )
            raise StorageError(self.lost.message, hint=self.lost.hint) from error

    def _moved(self, call: Call, first: int, memory: Tensor) -> None:
        view = memory.numpy().data
        direct = self._direct is not None and (memory.data_ptr() - first) % PAGE_BYTES == 0
        for start, stop in _spans(first, first + len(view), direct=direct):
            self._move_span(call, start, view[start - first : stop - first])

    def _move_span(self, call: Call, at: int, left: memoryview) -> None:
        large = len(left) >= DIRECT_BYTES
        while left:
            aligned = not (at % PAGE_BYTES or len(left) % PAGE_BYTES)
            direct = self._direct if large and aligned else None
            try:
                count = call(self._file if direct is None else direct.fileno(), [left], at)
            except OSError as error:
                if direct is None or not is_refusal(error):
                    raise
                self._direct = None
                continue
            if not count:
                raise OSError(errno.EIO, "the file ends early")
            if large and direct is None:
                # Begins to write back, so that dirty pages do not pile up.
                os.posix_fadvise(self._file, at, count, os.POSIX_FADV_DONTNEED)
            left, at = left[count:], at + count


class FileIntake:
    """Writes a file past the page cache from memory that is used again and again.

    Args:
        arena: the file.
    """

    def __init__(self, arena: FileArena) -> None:
        self._arena = arena
        self._free: list[Tensor] = []
        self._lent: dict[int, Tensor] = {}

    def part(self, first: int, size_bytes: int) -> Tensor:
        """Return memory that begins at the same place of a page as ``first`` does."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        if memory.numel() < size_bytes + PAGE_BYTES:
            memory = torch.from_numpy(transfer_memory(size_bytes + PAGE_BYTES))
        found = memory[first % PAGE_BYTES :][:size_bytes]
        self._lent[found.data_ptr()] = memory
        return found

    def filled(self, first: int, memory: Tensor) -> None:
        """Write what `part` returned.

        Raises:
            StorageError: the disk failed.
        """
        self._arena.fill(first, memory)
        self._free.append(self._lent.pop(memory.data_ptr()))


def _mapped(file: int, size: int) -> Tensor:
    """Return a file's bytes, to be read in order by whoever saves them."""
    # Not a private mapping, which would be counted as memory that may be needed.
    memory = mmap.mmap(file, size)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        memory.madvise(mmap.MADV_SEQUENTIAL)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _unnamed(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        path.unlink()
    except OSError:
        os.close(file)
        raise
    return file


def _spans(start: int, stop: int, *, direct: bool) -> Iterator[tuple[int, int]]:
    """Cut a run into whole pages and what is before and behind them, if that is worth it."""
    if not direct or stop - start < DIRECT_BYTES + 2 * PAGE_BYTES:
        yield start, stop
        return
    first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
    yield from ((a, b) for a, b in ((start, first), (first, last), (last, stop)) if a < b)
