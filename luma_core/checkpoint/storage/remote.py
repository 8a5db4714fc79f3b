"""Stores by fsspec URL: whatever backend is installed, with retries and no cached listings."""

from __future__ import annotations

import contextlib
import errno
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from luma_core.checkpoint.storage.commit import CommitStrategy, ManifestLast
from luma_core.checkpoint.storage.names import check_name, is_safe_name
from luma_core.checkpoint.storage.store import (
    ABSENT,
    SCRATCH_MEMORY_BYTES,
    ObjectWriter,
    Store,
    Version,
    changed_meanwhile,
)
from luma_core.errors import LumaError

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.2
"""Each further wait is twice as long, by chance up to half more."""

_TRANSIENT_ERRNO = {errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.EBUSY}
_TRANSIENT_STATUS = {408, 429}
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
_TIME_KEYS = ("LastModified", "last_modified", "mtime", "updated", "created")

P = ParamSpec("P")
T = TypeVar("T")

# Between a look at an object and its replacement; other processes are not kept out by it.
_commit_lock = threading.Lock()


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a backend's own exceptions into ``OSError``, which callers expect of storage."""
    try:
        yield
    except (OSError, LumaError, ValueError, TypeError):
        raise
    except Exception as error:
        told = TimeoutError if isinstance(error, TimeoutError) else OSError
        raise told(f"{type(error).__name__}: {error}") from error


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later."""
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in _TRANSIENT_STATUS or status >= 500
    return getattr(error, "errno", None) in _TRANSIENT_ERRNO


def retried(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call, and retry transient failures after growing waits."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(1, 1.5))
    return call(*args, **kwargs)


class FsspecStore(Store):
    """A folder of any fsspec file system.

    Objects are collected in memory or a temporary file and handed over whole when they are
    committed, because what an fsspec file publishes when an exception passes through it is a part.

    Args:
        fs: the file system; not asynchronous, without a cache of listings.
        path: the folder, as ``fs`` names it.
        url: the place, for messages.
    """

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/")
        self.url = url.rstrip("/")

    @property
    def strategy(self) -> CommitStrategy:
        return ManifestLast()

    def path_of(self, name: str) -> str:
        """Return the object's path in the file system."""
        return f"{self.path}/{check_name(name)}"

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system, with retries and plain errors."""
        with plain_errors():
            return retried(getattr(self.fs, method), *args, **kwargs)

    def write(self, name: str, *, expected: Version | None = None) -> ObjectWriter:
        check_name(name)
        return WholeWriter(self, name, expected)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        path = self.path_of(name)
        if start >= stop:
            return b""
        return bytes(self.call("cat_file", path, start=start, end=stop))

    def _info(self, name: str) -> dict[str, Any] | None:
        path = self.path_of(name)
        try:
            found: dict[str, Any] = self.call("info", path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if found.get("type") == "file" else None

    def size(self, name: str) -> int | None:
        found = self._info(name)
        return None if found is None else int(found["size"])

    def version(self, name: str) -> Version:
        found = self._info(name)
        if found is None:
            return ABSENT
        marks = [str(found[key]) for key in _VERSION_KEYS if found.get(key) is not None]
        return Version("|".join([str(found["size"]), *marks]))

    def modified(self, name: str) -> float | None:
        return _seconds(self._info(name) or {})

    def _listing(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self.call("ls", self.path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some backends list a folder's own marker, and a file as the only thing in itself.
        return [entry for entry in found if entry["name"].strip("/") != self.path.strip("/")]

    def names(self) -> list[str]:
        return self._listed("file")

    def folders(self) -> list[str]:
        return [name for name in self._listed("directory") if is_safe_name(name)]

    def _listed(self, kind: str) -> list[str]:
        names = {
            entry["name"].rstrip("/").rpartition("/")[2]
            for entry in self._listing()
            if entry["type"] == kind
        }
        return sorted(names - {""})

    def delete(self, name: str) -> None:
        path = self.path_of(name)
        with contextlib.suppress(FileNotFoundError):
            self.call("rm_file", path)

    def discard_leftovers(self, *, older_than_seconds: float = 0) -> None:
        """Do nothing: before its commit an object exists on this side only."""

    def folder(self, name: str) -> Store:
        return type(self)(self.fs, self.path_of(name), f"{self.url}/{name}")

    @property
    def place(self) -> tuple[str, str]:
        parent, slash, name = self.path.rpartition("/")
        if not slash:
            raise self._alone()
        return f"{type(self.fs).__name__}:{parent}", name

    def beside(self, name: str) -> Store:
        path = f"{self.path[: -len(self.place[1])]}{check_name(name)}"
        return type(self)(self.fs, path, f"{self.url.rpartition('/')[0]}/{name}")

    def remove_folder(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotImplementedError):
            if not self._listing():
                self.call("rmdir", self.path)

    def put(self, name: str, data: bytes | Path) -> None:
        """Store an object whole, making the folder where the backend wants one."""
        path = self.path_of(name)
        self.call("makedirs", self.path, exist_ok=True)
        if isinstance(data, bytes):
            self.call("pipe_file", path, data)
        else:
            self.call("put_file", str(data), path)


def _seconds(info: dict[str, Any]) -> float | None:
    for key in _TIME_KEYS:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


class WholeWriter(ObjectWriter):
    """Collects an object and hands it over in one call.

    Args:
        store: where to.
        name: of the object.
        expected: what may be replaced.
    """

    def __init__(self, store: FsspecStore, name: str, expected: Version | None) -> None:
        self._store = store
        self._name = name
        self._expected = expected
        self._buffer: bytearray | None = bytearray()
        self._file: Any = None

    def write(self, data: bytes | memoryview) -> None:
        if self._buffer is None:
            raise ValueError(f"{self._name} is committed or discarded")
        self._buffer += data
        if len(self._buffer) > SCRATCH_MEMORY_BYTES:
            self._spill(self._buffer)

    def _spill(self, buffer: bytearray) -> None:
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(prefix="luma-", suffix=".part")  # noqa: SIM115
        self._file.write(buffer)
        buffer.clear()

    def commit(self) -> None:
        buffer = self._buffer
        if buffer is None:
            raise ValueError(f"{self._name} is committed or discarded")
        data: bytes | Path
        if self._file is None:
            data = bytes(buffer)
        else:
            self._spill(buffer)
            self._file.flush()
            data = Path(self._file.name)
        with _commit_lock if self._expected is not None else contextlib.nullcontext():
            before = self._store.version(self._name)
            if self._expected not in (None, before):
                raise changed_meanwhile(f"{self._store.url}/{self._name}")
            try:
                self._store.put(self._name, data)
            except BaseException:
                # A backend that streams may have published the part it got.
                if before == ABSENT:
                    with contextlib.suppress(OSError):
                        self._store.delete(self._name)
                raise
        self.discard()

    def discard(self) -> None:
        self._buffer = None
        if self._file is not None:
            self._file.close()
            self._file = None
