"""Transfers between memory and disk that pass by the page cache, where the system can do that.

They take next to no processor time and leave the cache to others. The file system decides, when a
file is opened or at the first transfer, so whoever uses this needs a second way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from functools import cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from luma_core.errors import StorageError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = import_later("numpy", globals())

Bytes: TypeAlias = "npt.NDArray[np.uint8]"

PAGE_BYTES = 4096
"""Memory, place in the file and length of a transfer are multiples of it."""

_HUGE_BYTES = 2 << 20
_LOOKED_AT_BYTES = 1 << 30

# What file systems answer that take a file opened for such transfers and then do not do them.
_REFUSALS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def transfer_memory(size_bytes: int) -> Bytes:
    """Return memory for transfers, 1-D, that begins at a multiple of 2 MiB; zeros.

    It is in huge pages where Linux gives them to those who ask: a disk takes a limited number of
    neighbouring pages in one request, and small pages are seldom neighbours. A forked child does
    not get it: of memory that fork makes two of, a disk may reach the wrong one.
    """
    memory = mmap.mmap(-1, size_bytes + _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):
        # Kernels may be built without.
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(getattr(mmap, advice))
    whole: Bytes = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _HUGE_BYTES
    return whole[start : start + size_bytes]


def opened(path: Path) -> FileIO:
    """Open a file for reading, and nothing else: a pipe would wait for its writer for good.

    Raises:
        StorageError: there is something that is no regular file.
        OSError: it cannot be opened.
    """
    file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    if not regular:
        file.close()
        told = StorageError(
            f"{path}: it is no regular file.", hint="Only files are read, no pipes or devices."
        )
        told.errno, told.strerror = errno.EINVAL, "it is no regular file"
        raise told
    return file


def opened_directly(path: Path, mode: Literal["rb", "r+b"]) -> FileIO | None:
    """Open a file for transfers past the page cache; ``None`` where there is no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_DIRECT))
    except OSError:
        return None


def is_refusal(error: OSError) -> bool:
    """Whether a transfer failed because the file system has none of this kind."""
    return error.errno in _REFUSALS


def page_span(start: int, stop: int) -> tuple[int, int]:
    """Return the whole pages around the bytes ``[start, stop)`` of a file."""
    return start // PAGE_BYTES * PAGE_BYTES, -(-stop // PAGE_BYTES) * PAGE_BYTES


def is_cached(file: FileIO) -> bool:
    """Whether most of a file (of its first GiB) is in the page cache, or nobody can tell.

    Linux tells only of files that this process may write.
    """
    size = min(os.fstat(file.fileno()).st_size, _LOOKED_AT_BYTES)
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    try:
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            start = np.frombuffer(mapped, np.uint8).ctypes.data
            failed = _libc().mincore(
                ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
            )
    except (OSError, ValueError):
        # Some file systems map no files; nobody maps an empty one, or one cut just now.
        return True
    return bool(failed) or 2 * int((pages & 1).sum()) > len(pages)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
