"""Where checkpoints live: the contract of a store.

A store is one flat folder of objects. An object appears only when its writer commits, whole or not
at all; writes are sequential; nothing is renamed or appended to afterwards. `local`, `remote` and
`s3` fulfil the contract, and `open` chooses one of them by URL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self, cast

from luma_core.checkpoint.storage.commit import CommitStrategy
from luma_core.direct import Bytes
from luma_core.errors import ConcurrentSaveError, ConfigurationError, LumaError, StorageError

SCRATCH_MEMORY_BYTES = 64 << 20
"""A scratch file stays in memory up to this size, unless its caller says otherwise."""

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
        reason = error.strerror or str(error) or type(error).__name__
        told = StorageError(
            f"{place}: {reason.rstrip('.')}.", hint=_HINTS.get(error.errno or 0, "")
        )
        told.errno = error.errno
        raise told from error


@dataclass(frozen=True)
class Version:
    """What an object was when it was looked at; differs from every other content's.

    Attributes:
        token: the store's own mark, such as an ETag; empty where there was no object.
    """

    token: str


ABSENT: Final = Version("")
"""The version of an object that is not there."""


class ObjectWriter(ABC):
    """Writes one object from start to end.

    Leaving its ``with`` block without `commit`, by an exception or not, discards what was written.
    """

    @abstractmethod
    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, whose memory is the caller's again when this returns.

        Raises:
            ValueError: the object is committed or discarded already.
            OSError: the store failed, with these data or earlier ones.
        """

    @abstractmethod
    def commit(self) -> None:
        """Make the object durable and visible under its name, replacing an older one at once.

        Raises:
            ConcurrentSaveError: the object is not of the version that was expected.
            ValueError: the object is committed or discarded already.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget what was written; does nothing after `commit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.discard()


class ObjectReader(ABC):
    """Reads most of one object, roughly in order. Several threads may use it at once."""

    @abstractmethod
    def read(self, start: int, stop: int, memory: Bytes) -> memoryview:
        """Return the bytes ``[start, stop)``, fewer where the object ends before.

        Args:
            start: first byte.
            stop: behind the last.
            memory: which part of is returned: of `luma_core.direct.transfer_memory`, as long as the
                whole pages (`luma_core.direct.page_span`) around those bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Store(ABC):
    """One folder of objects. Its methods may be called from several threads at once.

    Attributes:
        url: the place, for messages.
    """

    url: str

    @property
    @abstractmethod
    def strategy(self) -> CommitStrategy:
        """How commits are made here, and which guarantees that gives."""

    @abstractmethod
    def write(self, name: str, *, expected: Version | None = None) -> ObjectWriter:
        """Begin to write the object ``name``.

        Args:
            name: of the object.
            expected: what `commit` may replace; ``None`` for whatever is there.
        """

    @abstractmethod
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)``, fewer where the object ends before.

        Raises:
            FileNotFoundError: there is no such object.
        """

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Read the bytes from ``start`` on into ``out``; return how many there were.

        Less than ``out`` holds where the object ends before.

        Args:
            name: of the object.
            start: first byte.
            out: writable bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        data = self.read_range(name, start, start + len(out))
        out[: len(data)] = data
        return len(data)

    def reader(self, name: str, *, again: bool = False) -> ObjectReader:
        """Return what reads an object whole, or nearly; `read_range` and `read_into` read a little.

        Args:
            name: of the object.
            again: whether it will be read once more soon, so that keeping it may be worth it.

        Raises:
            FileNotFoundError: there is no such object; the first read may say so as well.
        """
        return _RangeReader(self, name)

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the object's size in bytes, or ``None`` where there is none."""

    @abstractmethod
    def version(self, name: str) -> Version:
        """Return the object's present version, `ABSENT` where there is none."""

    @abstractmethod
    def modified(self, name: str) -> float | None:
        """Return when the object was written, in seconds since 1970, or ``None`` if unknown."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all committed objects, sorted; empty where the folder is missing."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; does nothing where there is none."""

    @abstractmethod
    def discard_leftovers(self, *, older_than_seconds: float = 0) -> None:
        """Remove what writers of killed processes left behind, which `names` never shows.

        Args:
            older_than_seconds: spares what may belong to a writer that is still at work.
        """

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the folders inside, sorted."""

    @abstractmethod
    def folder(self, name: str) -> Store:
        """Return the store of a folder inside, which need not exist."""

    @property
    def place(self) -> tuple[str, str]:
        """The folder that holds this one, and this one's name there.

        They are equal for two stores exactly where these are one place.

        Raises:
            ConfigurationError: there is no folder around this one.
        """
        raise self._alone()

    def beside(self, name: str) -> Store:
        """Return the store of another folder in the same folder; it need not exist.

        Raises:
            ConfigurationError: there is no folder around this one.
        """
        raise self._alone()

    def _alone(self) -> ConfigurationError:
        return ConfigurationError(f"{self.url}: no other checkpoint can lie beside this place.")

    @abstractmethod
    def remove_folder(self) -> None:
        """Remove this folder where the store keeps empty ones and it is empty."""

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Keep other savers out of this folder meanwhile; yields whether that is so.

        Raises:
            ConcurrentSaveError: somebody else is saving to this folder.
        """
        yield False

    def scratch(self, memory_bytes: int = SCRATCH_MEMORY_BYTES) -> IO[bytes]:
        """Return an anonymous temporary file, in memory while it is smaller than that."""
        return scratch_file(None, memory_bytes)


class _RangeReader(ObjectReader):
    """Asks the store for one range after the other."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def read(self, start: int, stop: int, memory: Bytes) -> memoryview:
        out = memory.data[: stop - start]
        return out[: self._store.read_into(self._name, start, out)]

    def close(self) -> None:
        pass


Place = str | os.PathLike[str] | Store
"""A folder: a path, a ``file://`` or other fsspec URL, or a store."""


def changed_meanwhile(place: str) -> ConcurrentSaveError:
    """Return the error of a commit that finds another version than it expected."""
    return ConcurrentSaveError(
        f"{place}: somebody else saved here in the meantime.",
        hint="Their checkpoint stands. Save again to replace it, or save to another folder.",
    )


def scratch_file(folder: Path | None, memory_bytes: int = SCRATCH_MEMORY_BYTES) -> IO[bytes]:
    """Return a temporary file that spills into ``folder``, or where the system keeps such files."""
    place = None if folder is None else str(folder)
    spool = tempfile.SpooledTemporaryFile(max_size=memory_bytes, dir=place)  # noqa: SIM115
    return cast(IO[bytes], spool)
