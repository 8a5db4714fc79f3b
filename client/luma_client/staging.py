"""What was written for a server and not sent yet: in memory while small, else in a file."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from luma_core.checkpoint.storage.store import (
    ObjectWriter,
    Version,
    changed_meanwhile,
    scratch_file,
)

MEMORY_BYTES = 1 << 20
"""Files up to this size are held in memory; larger ones where the system keeps temporary files."""


@dataclass
class StagedFile:
    """A file that was written whole.

    Attributes:
        content: an anonymous file, which ends with the process.
        size_bytes: its size.
        version: differs from every other's.
        written: when, in seconds since 1970.
    """

    content: IO[bytes]
    size_bytes: int
    version: Version = field(default_factory=lambda: Version(f"staged-{secrets.token_hex(16)}"))
    written: float = field(default_factory=time.time)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Nobody else knows when the last reader is done with it.
        weakref.finalize(self, self.content.close)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)``, fewer where the file ends before."""
        with self._lock:
            self.content.seek(start)
            return self.content.read(max(0, stop - start))


class UnsentFiles:
    """The staged files of one folder, and the folders inside; shared by all stores of the place."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._files: dict[str, StagedFile] = {}
        self._folders: dict[str, UnsentFiles] = {}

    def folder(self, name: str) -> UnsentFiles:
        """Return what is staged for a folder inside."""
        with self.lock:
            return self._folders.setdefault(name, UnsentFiles())

    def folders(self) -> list[str]:
        """Return the names of the folders inside for which anything is staged."""
        with self.lock:
            return [name for name, inner in self._folders.items() if inner]

    def __bool__(self) -> bool:
        return bool(self._files or self.folders())

    def get(self, name: str) -> StagedFile | None:
        """Return a file, or None where it is not staged."""
        return self._files.get(name)

    def names(self) -> list[str]:
        """Return the names of the files."""
        with self.lock:
            return list(self._files)

    def put(self, name: str, file: StagedFile) -> None:
        """Stage a file in place of an older one."""
        with self.lock:
            # Not closed: somebody may be reading it.
            self._files[name] = file

    def drop(self, name: str) -> None:
        """Forget a file; does nothing where there is none."""
        with self.lock:
            self._files.pop(name, None)


class StagedWriter(ObjectWriter):
    """Collects a file.

    Args:
        place: the file's URL, for messages.
        expected: version that `commit` may replace; None for any.
        version: tells the present version.
        publish: does what `commit` means, with the file.
        lock: held while the version is compared and the file published.
    """

    def __init__(
        self,
        place: str,
        *,
        expected: Version | None,
        version: Callable[[], Version],
        publish: Callable[[StagedFile], None],
        lock: threading.RLock,
    ) -> None:
        self._place = place
        self._expected = expected
        self._version = version
        self._publish = publish
        self._lock = lock
        self._size_bytes = 0
        self._content: IO[bytes] | None = scratch_file(None, MEMORY_BYTES)

    def write(self, data: bytes | memoryview) -> None:
        self._open().write(data)
        self._size_bytes += memoryview(data).nbytes

    def commit(self) -> None:
        content = self._open()
        with self._lock:
            if self._expected is not None and self._version() != self._expected:
                raise changed_meanwhile(self._place)
            self._publish(StagedFile(content, self._size_bytes))
        self._content = None

    def discard(self) -> None:
        if self._content is not None:
            self._content.close()
            self._content = None

    def _open(self) -> IO[bytes]:
        if self._content is None:
            raise ValueError(f"{self._place} is committed or discarded")
        return self._content
