"""Where checkpoints live: a contract that object stores can fulfil, and local folders.

A store is one flat folder of objects. An object appears only when its writer commits, whole or not
at all; writes are sequential; nothing is renamed or appended to afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Self, cast
from urllib.parse import unquote, urlsplit

from luma_core.checkpoint.names import check_name
from luma_core.errors import LumaError, StorageError

SCRATCH_MEMORY_BYTES = 64 << 20
"""A scratch file stays in memory up to this size."""

_TEMPORARY = re.compile(r"\.[A-Za-z0-9._-]{1,200}\.[0-9a-f]{16}\.luma-tmp")

_HINTS = {
    errno.ENOSPC: "Free some space there, or choose another place.",
    errno.EDQUOT: "The quota there is used up: free some space, or choose another place.",
    errno.EFBIG: "Such large files are not allowed there: save in smaller shards.",
    errno.EACCES: "Check who may write to that folder.",
    errno.EPERM: "Check who may write to that folder.",
    errno.EROFS: "That file system is read-only: choose another place.",
    errno.ENOTDIR: "A part of that path is a file, not a folder.",
    errno.EISDIR: "That path is a folder, not a file.",
}


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn every plain ``OSError`` inside into a `StorageError` that names ``place``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LumaError):
            raise
        reason = error.strerror or str(error)
        told = StorageError(f"{place}: {reason}.", hint=_HINTS.get(error.errno or 0, ""))
        told.errno = error.errno
        raise told from error


class ObjectWriter(ABC):
    """Writes one object from start to end.

    Leaving its ``with`` block without `commit`, by an exception or not, discards what was written.
    """

    @abstractmethod
    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""

    @abstractmethod
    def commit(self) -> None:
        """Make the object durable and visible under its name, replacing an older one at once."""

    @abstractmethod
    def discard(self) -> None:
        """Forget what was written; does nothing after `commit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.discard()


class Store(ABC):
    """One folder of objects.

    Attributes:
        url: the place, for messages.
    """

    url: str

    @abstractmethod
    def write(self, name: str) -> ObjectWriter:
        """Begin to write the object ``name``."""

    @abstractmethod
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)``, fewer where the object ends before.

        Raises:
            FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the object's size in bytes, or ``None`` where there is none."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all committed objects, sorted; empty where the folder is missing."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; does nothing where there is none."""

    @abstractmethod
    def discard_leftovers(self) -> None:
        """Remove what writers of killed processes left behind, which `names` never shows."""

    def scratch(self) -> IO[bytes]:
        """Return an anonymous temporary file, in memory while it is small."""
        return scratch_file(None)


def scratch_file(folder: Path | None) -> IO[bytes]:
    """Return a temporary file that spills into ``folder``, or where the system keeps such files."""
    place = None if folder is None else str(folder)
    spool = tempfile.SpooledTemporaryFile(max_size=SCRATCH_MEMORY_BYTES, dir=place)  # noqa: SIM115
    return cast(IO[bytes], spool)


class LocalStore(Store):
    """A folder of the local file system.

    An object is written under a temporary name in the same folder, synced, renamed, and the folder
    synced: after `commit` returns it survives a power cut, and before it nobody sees it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name)

    def write(self, name: str) -> ObjectWriter:
        path = self._path(name)
        make_folder(self.folder)
        return LocalWriter(path)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        with self._path(name).open("rb", buffering=0) as file:
            file.seek(start)
            pieces = []
            while start < stop and (piece := file.read(stop - start)):
                pieces.append(piece)
                start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        try:
            entries = list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            entry.name
            for entry in entries
            if not _TEMPORARY.fullmatch(entry.name) and entry.is_file()
        )

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def discard_leftovers(self) -> None:
        if self.folder.is_dir():
            for entry in self.folder.iterdir():
                if _TEMPORARY.fullmatch(entry.name):
                    entry.unlink(missing_ok=True)

    def scratch(self) -> IO[bytes]:
        """Return a scratch file that spills into the same folder: there must be room anyway."""
        make_folder(self.folder)
        return scratch_file(self.folder)


class LocalWriter(ObjectWriter):
    """Writes a local file through a temporary name beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.luma-tmp")
        self._file: BinaryIO | None = self._temporary.open("xb", buffering=1 << 20)

    def write(self, data: bytes | memoryview) -> None:
        if self._file is None:
            raise ValueError(f"{self._path.name} is committed or discarded")
        self._file.write(data)

    def flush(self) -> None:
        """Hand buffered bytes to the system, as writers of files expect to be able to."""
        if self._file is not None:
            self._file.flush()

    def commit(self) -> None:
        file = self._file
        if file is None:
            raise ValueError(f"{self._path.name} is committed or discarded")
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._temporary.replace(self._path)
        self._file = None
        sync_folder(self._path.parent)

    def discard(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        # A full disk fails again when buffered bytes are flushed, and that tells nothing new.
        with contextlib.suppress(OSError):
            file.close()
        self._temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def local_path(url: str | os.PathLike[str]) -> Path:
    """Return the path that a plain path or ``file://`` URL names.

    Raises:
        StorageError: it is a URL of another kind.
    """
    text = os.fspath(url)
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    raise StorageError(
        f"{text!r}: no store for {text.split('://')[0]!r} locations.",
        hint="Give a local path or a file:///absolute/path URL.",
    )


def open_store(url: str | os.PathLike[str]) -> Store:
    """Return the store of the folder that ``url`` names; it need not exist yet.

    Raises:
        StorageError: no store handles that kind of URL.
    """
    return LocalStore(local_path(url))
