"""Files and folders of foreign formats: local ones, and those of any fsspec URL.

What is remote is copied to a temporary file where a library can only read local ones, and read by
ranges where it need not be.
"""

from __future__ import annotations

import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from luma_core.checkpoint.storage.local import is_local, local_path
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.remote import FsspecStore
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.convert.base import Url
from luma_core.direct import opened
from luma_core.errors import CheckpointNotFoundError, ConversionError, StorageError


class Folder(ABC):
    """A folder that holds files and folders.

    Attributes:
        where: the place, for messages.
    """

    where: str

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is no such file."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of files and folders inside, sorted; empty where there is no folder."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes ``[start, stop)`` of a file, fewer where it ends before.

        Raises:
            StorageError: it cannot be read.
        """

    @abstractmethod
    def folder(self, name: str) -> Folder:
        """Return a folder inside, which need not exist."""

    @abstractmethod
    def local(self, name: str) -> AbstractContextManager[Path]:
        """Give a path to a file's content, local while the context lasts.

        What is mapped from it outlives the context.

        Raises:
            StorageError: it cannot be read.
        """

    def file(self, name: str) -> File:
        """Return a file inside, which need not exist.

        Raises:
            ConversionError: ``name`` is not the name of a file in this folder.
        """
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ConversionError(f"{self.where}: {name!r} is not the name of a file in it.")
        return File(self, name)


@dataclass(frozen=True)
class File:
    """A file, which need not exist.

    Attributes:
        folder: that holds it.
        name: its name in it.
    """

    folder: Folder
    name: str

    def __str__(self) -> str:
        return f"{self.folder.where.rstrip('/')}/{self.name}"

    @property
    def size_bytes(self) -> int | None:
        """Its size; None where there is none."""
        return self.folder.size(self.name)

    def is_there(self) -> bool:
        """Whether it exists and is a file."""
        return self.size_bytes is not None

    def required_bytes(self) -> int:
        """Return its size.

        Raises:
            CheckpointNotFoundError: there is no such file.
        """
        size = self.size_bytes
        if size is None:
            raise CheckpointNotFoundError(f"{self}: there is no such file.")
        return size

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return its bytes ``[start, stop)``; see `Folder.read`."""
        return self.folder.read(self.name, start, stop)

    def local(self) -> AbstractContextManager[Path]:
        """Give a local path to its content; see `Folder.local`."""
        return self.folder.local(self.name)


class LocalFolder(Folder):
    """A folder of the local file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def size(self, name: str) -> int | None:
        path = self.path / name
        with storage_errors(str(path)):
            return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        with storage_errors(self.where):
            if not self.path.is_dir():
                return []
            return sorted(entry.name for entry in self.path.iterdir())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        path = self.path / name
        with storage_errors(str(path)), io.BufferedReader(opened(path)) as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(stop - start, 0))

    def folder(self, name: str) -> Folder:
        return LocalFolder(self.path / name)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self.path / name
        # Libraries open by path whatever is there.
        with storage_errors(str(path)):
            opened(path).close()
        yield path


class RemoteFolder(Folder):
    """A folder of an fsspec file system.

    Args:
        store: gives the file system, with its retries.
        path: the folder, as the file system names it.
        where: the place, for messages.
    """

    def __init__(self, store: FsspecStore, path: str, where: str) -> None:
        self.store = store
        self.path = path
        self.where = where

    def path_of(self, name: str) -> str:
        """Return what the file system calls a file inside."""
        return f"{self.path}/{name}"

    def call(self, name: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system about a file inside, with the store's retries."""
        with storage_errors(f"{self.where}/{name}"):
            return self.store.call(method, *args, **kwargs)

    def size(self, name: str) -> int | None:
        try:
            found = self.call(name, "info", self.path_of(name))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise
        return int(found["size"]) if found["type"] == "file" else None

    def names(self) -> list[str]:
        try:
            found = self.call("", "ls", self.path, detail=False)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return []
            raise
        own = self.path.strip("/")
        paths = [path.strip("/") for path in cast(list[str], found)]
        return sorted({path.rpartition("/")[2] for path in paths if path != own})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None and start >= stop:
            return b""
        return bytes(self.call(name, "cat_file", self.path_of(name), start=start, end=stop))

    def folder(self, name: str) -> Folder:
        return RemoteFolder(self.store, self.path_of(name), f"{self.where}/{name}")

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="luma-") as scratch:
            path = Path(scratch) / "copy"
            expected = self.file(name).required_bytes()
            self.call(name, "get_file", self.path_of(name), str(path))
            if path.stat().st_size != expected:
                raise StorageError(
                    f"{self.where}/{name}: {path.stat().st_size} bytes came of {expected}.",
                    hint="It may have been replaced meanwhile: try again.",
                )
            yield path


def resolved(url: Url) -> Url:
    """Return a place as it is now: local ones as absolute paths, others unchanged.

    Raises:
        StorageError: it is relative to a directory that was removed.
    """
    return local_path(url) if is_local(url) else url


def folder_at(url: Url) -> Folder:
    """Return the folder that a path or fsspec URL names; it need not exist.

    Raises:
        StorageError: no store handles that kind of URL, or its package is not installed.
    """
    remote = _remote(url)
    if remote is None:
        return LocalFolder(local_path(url))
    return RemoteFolder(remote, remote.path, remote.url)


def file_at(url: Url) -> File:
    """Return the file that a path or fsspec URL names; it need not exist.

    Raises:
        StorageError: no store handles that kind of URL, or its package is not installed.
    """
    remote = _remote(url)
    if remote is None:
        path = local_path(url)
        return File(LocalFolder(path.parent), path.name)
    path_above, _, name = remote.path.rpartition("/")
    return File(RemoteFolder(remote, path_above, remote.url.rpartition("/")[0]), name)


def file_and_choice(url: Url) -> tuple[File, str]:
    """Return a file, and what follows ``#`` in the URL: which optimizer in the file is meant.

    A file whose own name has a ``#`` goes by that name.

    Raises:
        StorageError: as for `file_at`.
    """
    file = file_at(url)
    name, mark, choice = file.name.partition("#")
    if not mark or not name or file.is_there():
        return file, ""
    return File(file.folder, name), choice


def _remote(url: Url) -> FsspecStore | None:
    if is_local(url):
        return None
    text = os.fspath(url)
    store = open_store(text)
    if not isinstance(store, FsspecStore):
        raise StorageError(f"{text!r}: only paths and fsspec URLs can be converted.")
    return store
