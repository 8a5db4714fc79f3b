"""Writing a local file from start to end, past the page cache and on a thread of its own."""

from __future__ import annotations

import errno
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from luma_core.direct import PAGE_BYTES, Bytes, is_refusal, opened_directly, transfer_memory
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import numpy as np
else:
    np = import_later("numpy", globals())

PIECE_BYTES = 2 << 20
"""What is gathered before it is written."""

PIECES = 4
"""Of a file in memory, one that is filled and those on their way: a disk does not take equally long
for each. A short file has one."""


class FileWriter:
    """Writes a new file.

    What is written is gathered in pieces. One is filled while a thread hands those before to the
    disk, directly where the file system can do that, so that neither the page cache nor this
    thread's time is taken by gigabytes that nobody reads soon. What is less than a piece, and what
    is behind the last whole page, goes through the page cache.

    An error of the disk is raised by a later call than the one that brought the bytes, `sync` at
    the latest, which fails from then on.

    Raises:
        FileExistsError: there is a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # First, so that no file is left where there is no memory.
        self._piece = transfer_memory(PIECE_BYTES)
        self._file = FileIO(path, "xb")
        self._direct: FileIO | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._writing: deque[tuple[Future[None], Bytes]] = deque()
        self._spare: list[Bytes] = []
        self._start = 0
        self._filled = 0
        self._flushed = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which is copied."""
        left: Bytes = np.frombuffer(data, np.uint8)
        while len(left):
            count = min(len(left), PIECE_BYTES - self._filled)
            # Unlike a copy of bytes, one of arrays lets other threads run.
            np.copyto(self._piece[self._filled : self._filled + count], left[:count])
            self._filled += count
            left = left[count:]
            if self._filled == PIECE_BYTES:
                self._send()

    def _send(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "luma-write")
            self._direct = opened_directly(self._path, "r+b")
        while self._writing and (len(self._writing) == PIECES - 1 or self._writing[0][0].done()):
            self._oldest()
        sent = self._pool.submit(self._put, self._piece.data, self._start)
        self._writing.append((sent, self._piece))
        self._piece = self._spare.pop() if self._spare else transfer_memory(PIECE_BYTES)
        self._start += PIECE_BYTES
        self._filled = self._flushed = 0

    def _oldest(self) -> None:
        """Wait for the oldest piece that is on its way; it stays where it failed."""
        sent, piece = self._writing[0]
        sent.result()
        self._writing.popleft()
        self._spare.append(piece)

    def _settle(self) -> None:
        """Wait for all pieces that are on their way."""
        while self._writing:
            self._oldest()

    def _put(self, data: memoryview, start: int) -> None:
        while data:
            pages = 0 if start % PAGE_BYTES else len(data) // PAGE_BYTES * PAGE_BYTES
            direct = self._direct if pages else None
            try:
                if direct is None:
                    done = os.pwrite(self._file.fileno(), data, start)
                else:
                    done = os.pwrite(direct.fileno(), data[:pages], start)
            except OSError as error:
                if direct is None or not is_refusal(error):
                    raise
                direct.close()
                self._direct = None
                continue
            if not done:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data, start = data[done:], start + done

    def flush(self) -> None:
        """Hand all that was written to the system."""
        self._settle()
        gathered = self._piece.data[self._flushed : self._filled]
        self._put(gathered, self._start + self._flushed)
        self._flushed = self._filled

    def sync(self) -> None:
        """Hand all that was written to the disk."""
        self._settle()
        self._put(self._piece.data[: self._filled], self._start)
        self._flushed = self._filled
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._direct is not None:
            self._direct.close()
        self._file.close()
