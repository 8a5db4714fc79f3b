"""Local folders: temporary names, fsync and rename, under a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from luma_core.checkpoint.storage.commit import AtomicRename, CommitStrategy
from luma_core.checkpoint.storage.file_reader import FileReader, read_cached
from luma_core.checkpoint.storage.file_writer import FileWriter
from luma_core.checkpoint.storage.names import check_name, is_safe_name
from luma_core.checkpoint.storage.store import (
    ABSENT,
    SCRATCH_MEMORY_BYTES,
    ObjectReader,
    ObjectWriter,
    Store,
    Version,
    changed_meanwhile,
    scratch_file,
)
from luma_core.direct import opened
from luma_core.errors import ConcurrentSaveError, StorageError
from luma_core.paths import resolve_path

_TEMPORARY = re.compile(r"\.[A-Za-z0-9._-]{1,200}\.[0-9a-f]{16}\.luma-tmp")

# What file systems without locks of folders answer, network file systems for example.
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

_LOCK_TRIES = 100

# `local` is fsspec's other name for `file`; what follows it may be relative.
_LOCAL_SCHEMES = ("file", "local")


class LocalStore(Store):
    """A folder of the local file system.

    An object is written under a temporary name in the same folder, synced, renamed, and the folder
    synced: after `commit` returns it survives a power cut, and before it nobody sees it.

    Args:
        folder: resolved now, so that a later change of the current directory changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = resolve_path(folder)
        self.url = str(self.path)
        self._held: os.stat_result | None = None

    def _path(self, name: str) -> Path:
        return self.path / check_name(name)

    @property
    def strategy(self) -> CommitStrategy:
        return AtomicRename()

    def write(self, name: str, *, expected: Version | None = None) -> ObjectWriter:
        path = self._path(name)
        if self._held is None:
            make_folder(self.path)
        else:
            self._check_is_held(self._held)
        return LocalWriter(path, expected=expected)

    def _check_is_held(self, held: os.stat_result) -> None:
        """Check that the path still leads to the folder that is kept for this saver alone.

        Raises:
            StorageError: it does not; objects of one checkpoint would lie in two folders.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(held, self.path.stat()):
                return
        raise StorageError(
            f"{self.url}: the folder was moved or removed while it was saved to.",
            hint="Save again, and leave the folder where it is until the save has ended.",
        )

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        with opened(self._path(name)) as file:
            file.seek(start)
            pieces = []
            while start < stop and (piece := file.read(stop - start)):
                pieces.append(piece)
                start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        with opened(self._path(name)) as file:
            return read_cached(file, start, out)

    def reader(self, name: str, *, again: bool = False) -> ObjectReader:
        return FileReader(self._path(name), direct=not again and not _is_shared())

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:
            return None

    def version(self, name: str) -> Version:
        return file_version(self._path(name))

    def modified(self, name: str) -> float | None:
        try:
            return self._path(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def names(self) -> list[str]:
        return [
            entry.name
            for entry in self._entries()
            if not _TEMPORARY.fullmatch(entry.name) and entry.is_file()
        ]

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def discard_leftovers(self, *, older_than_seconds: float = 0) -> None:
        latest = time.time() - older_than_seconds
        for entry in self._entries():
            if _TEMPORARY.fullmatch(entry.name) and entry.stat().st_mtime <= latest:
                entry.unlink(missing_ok=True)

    def folders(self) -> list[str]:
        return [e.name for e in self._entries() if is_safe_name(e.name) and e.is_dir()]

    def folder(self, name: str) -> Store:
        return LocalStore(self._path(name))

    @property
    def place(self) -> tuple[str, str]:
        real = Path(os.path.realpath(self.path))
        if not real.name:
            raise self._alone()
        return str(real.parent), real.name

    def beside(self, name: str) -> Store:
        return LocalStore(Path(self.place[0]) / check_name(name))

    def remove_folder(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            try:
                self.path.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        descriptor, locked = self._locked_folder()
        try:
            self._held = os.fstat(descriptor)
            yield locked
        finally:
            self._held = None
            try:
                if locked:
                    # Closing alone would leave it with any process that was forked meanwhile.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)

    def _locked_folder(self) -> tuple[int, bool]:
        """Lock the folder that is there; whoever had the lock before may have removed another."""
        for _ in range(_LOCK_TRIES):
            try:
                make_folder(self.path)
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            except FileExistsError:
                # A folder that was removed between two looks at it, or a file in its place.
                if self.path.is_file():
                    raise
                continue
            try:
                locked = self._lock(descriptor)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                        return descriptor, locked
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise ConcurrentSaveError(
            f"{self.url}: somebody else removes this folder again and again.",
            hint="Save to another folder.",
        )

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConcurrentSaveError(
                f"{self.url}: somebody else is saving to this folder.",
                hint="Wait until that save ends, or save to another folder.",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def scratch(self, memory_bytes: int = SCRATCH_MEMORY_BYTES) -> IO[bytes]:
        """Return a scratch file that spills into the same folder: there must be room anyway."""
        make_folder(self.path)
        return scratch_file(self.path, memory_bytes)


def _is_shared() -> bool:
    """Whether other processes may read the same files, so that one of them reads for all."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and distributed.is_initialized()
        and (distributed.get_world_size() > 1)
    )


def file_version(path: Path) -> Version:
    """Return the version of a local file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    return Version(f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")


class LocalWriter(ObjectWriter):
    """Writes a local file through a temporary name beside it."""

    def __init__(self, path: Path, *, expected: Version | None = None) -> None:
        self._path = path
        self._expected = expected
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.luma-tmp")
        self._file: FileWriter | None = FileWriter(self._temporary)

    def _open_file(self) -> FileWriter:
        if self._file is None:
            raise ValueError(f"{self._path.name} is committed or discarded")
        return self._file

    def write(self, data: bytes | memoryview) -> None:
        self._open_file().write(data)

    def flush(self) -> None:
        """Hand buffered bytes to the system, as writers of files expect to be able to."""
        if self._file is not None:
            self._file.flush()

    def keep_mode(self) -> None:
        """Give the new file the permissions of the one that it will replace, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(self._path.stat().st_mode)
            self._temporary.chmod(mode)

    def commit(self) -> None:
        file = self._open_file()
        file.sync()
        file.close()
        if self._expected is not None and file_version(self._path) != self._expected:
            raise changed_meanwhile(str(self._path))
        self._temporary.replace(self._path)
        self._file = None
        sync_folder(self._path.parent)

    def discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
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


def is_local(url: str | os.PathLike[str]) -> bool:
    """Return whether a place is a path, or a URL of this machine's file system."""
    scheme, mark, _ = os.fspath(url).partition("://")
    return not mark or scheme.lower() in _LOCAL_SCHEMES


def local_path(url: str | os.PathLike[str]) -> Path:
    """Return the absolute path that a plain path, ``file://`` or ``local://`` URL names.

    Raises:
        StorageError: it is a URL of another kind, or relative to a directory that was removed.
    """
    text = os.fspath(url)
    scheme, mark, path = text.partition("://")
    if not mark:
        return resolve_path(text)
    if scheme.lower() == "local":
        return resolve_path(path)
    parts = urlsplit(text)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return resolve_path(unquote(parts.path))
    raise StorageError(
        f"{text!r}: no store for {text.split('://')[0]!r} locations.",
        hint="Give a local path or a file:///absolute/path URL.",
    )
