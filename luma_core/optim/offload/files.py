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

from luma_core.errors import StorageError
from luma_core.optim.offload.arena import DIRECT_BYTES, PAGE_BYTES

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
        self._made += 1
        return FileArena(self.path / _NAME.format(self._made), size)


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Optimizers are parts of cycles: one that nobody has any more may hold it still.
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
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            weakref.finalize(self, os.close, self._file)
            try:
                self._direct = _opened_directly(path)
            finally:
                path.unlink()
            if self._direct is not None:
                weakref.finalize(self, os.close, self._direct)
            os.posix_fallocate(self._file, 0, size)
            self._memory = mmap.mmap(self._file, size)
        except OSError as error:
            raise StorageError(
                f"{size:,} bytes of optimizer state cannot be kept in {str(path.parent)!r}: "
                f"{error.strerror}.",
                hint="Free the space, or name another offload_directory; nothing was changed.",
            ) from error
        self.bytes = torch.frombuffer(self._memory, dtype=torch.uint8)

    def check(self) -> None:
        """Raise `StorageError` if some of the bytes were lost."""
        if self.lost is not None:
            raise self.lost

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
        view = memory.numpy().data
        direct = self._direct is not None and (memory.data_ptr() - first) % PAGE_BYTES == 0
        try:
            for start, stop in _spans(first, first + len(view), direct=direct):
                self._move_span(call, start, view[start - first : stop - first])
        except OSError as error:
            self.lost = StorageError(
                f"offloaded state could not be {what}: {error.strerror}. Parameters and state may "
                "be of different steps now.",
                hint="Mend the disk and load the last checkpoint.",
            )
            raise self.lost from error

    def _move_span(self, call: Call, at: int, left: memoryview) -> None:
        large = len(left) >= DIRECT_BYTES
        while left:
            aligned = not (at % PAGE_BYTES or len(left) % PAGE_BYTES)
            direct = self._direct if large and aligned else None
            try:
                count = call(self._file if direct is None else direct, [left], at)
            except OSError as error:
                if direct is None or error.errno != errno.EINVAL:
                    raise
                self._direct = None
                continue
            if not count:
                raise OSError(errno.EIO, "the file ends early")
            if large and direct is None:
                # Begins to write back, so that dirty pages do not pile up.
                os.posix_fadvise(self._file, at, count, os.POSIX_FADV_DONTNEED)
            left, at = left[count:], at + count


def _opened_directly(path: Path) -> int | None:
    """Open a file for transfers past the page cache; ``None`` where there is no such thing."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT) if hasattr(os, "O_DIRECT") else None
    except OSError:
        return None


def _spans(start: int, stop: int, *, direct: bool) -> Iterator[tuple[int, int]]:
    """Cut a run into whole pages and what is before and behind them, if that is worth it."""
    if not direct or stop - start < DIRECT_BYTES + 2 * PAGE_BYTES:
        yield start, stop
        return
    first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
    yield from ((a, b) for a, b in ((start, first), (first, last), (last, stop)) if a < b)
