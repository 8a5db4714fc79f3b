"""Reading local files: through the page cache, or past it what is read whole and not in there."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from luma_core.checkpoint.storage.store import ObjectReader
from luma_core.direct import (
    PAGE_BYTES,
    Bytes,
    is_cached,
    is_refusal,
    opened,
    opened_directly,
    page_span,
)

_LARGE_BYTES = 1 << 20


class FileReader(ObjectReader):
    """Reads a local file, directly from the disk unless the page cache has it.

    Args:
        path: of the file.
        direct: whether to do that.

    Attributes:
        path: as given.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, *, direct: bool) -> None:
        self.path = path
        self._file = opened(path)
        self._direct: FileIO | None = None
        self._refused = False
        try:
            large = os.fstat(self._file.fileno()).st_size >= _LARGE_BYTES
            if direct and large and not is_cached(self._file):
                self._direct = opened_directly(path, "rb")
        except BaseException:
            self._file.close()
            raise

    def read(self, start: int, stop: int, memory: Bytes) -> memoryview:
        if self._direct is not None and not self._refused:
            first, last = page_span(start, stop)
            try:
                count = _read_pages(self._direct, first, memory.data[: last - first])
            except OSError as error:
                if not is_refusal(error):
                    raise
                self._refused = True
            else:
                if count < stop - first:
                    # The file's end, or an error, which is told here.
                    rest = memory.data[count : stop - first]
                    count += read_cached(self._file, first + count, rest)
                return memory.data[start - first : min(count, stop - first)]
        out = memory.data[: stop - start]
        return out[: read_cached(self._file, start, out)]

    def close(self) -> None:
        self._file.close()
        if self._direct is not None:
            self._direct.close()


def read_cached(file: FileIO, start: int, out: memoryview) -> int:
    """Read the bytes from ``start`` on through the page cache; return how many there were."""
    if hasattr(os, "posix_fadvise"):
        # What lies behind is wanted next, and is fetched while these bytes are used.
        os.posix_fadvise(file.fileno(), start, 2 * len(out), os.POSIX_FADV_WILLNEED)
    done = 0
    while done < len(out) and (count := os.preadv(file.fileno(), [out[done:]], start + done)):
        done += count
    return done


def _read_pages(file: FileIO, start: int, out: memoryview) -> int:
    """Read whole pages past the page cache; a count that is none of them is where that ends."""
    done = 0
    while done < len(out) and (count := os.preadv(file.fileno(), [out[done:]], start + done)):
        done += count
        if count % PAGE_BYTES:
            break
    return done
