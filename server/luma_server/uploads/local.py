"""Staging in a local folder: parts are written where they belong in the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from luma_core.checkpoint.storage.local import LocalStore, make_folder, sync_folder
from luma_core.checkpoint.storage.names import check_name
from luma_core.checkpoint.storage.store import Store
from luma_core.direct import opened
from luma_server.uploads.staging import (
    READ_BYTES,
    PartWriter,
    StagingArea,
    UploadPart,
    WrongFileError,
)

_FOLLOWED = 256
"""Files whose SHA-256 is followed at the same time; that of others is computed when they end."""


class LocalStagingArea(StagingArea):
    """Keeps ``data/NAME``, the file in the making, and ``parts/NAME/MARKER`` for what arrived.

    A marker appears when its part is in the file and leaves before that part is written anew.

    Args:
        folder: of the session.
        part_bytes: size of all parts but a file's last.
    """

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder = folder
        self._part_bytes = part_bytes

    def _data(self, name: str) -> Path:
        return self._folder / "data" / check_name(name)

    def _markers(self, name: str) -> Path:
        return self._folder / "parts" / check_name(name)

    def parts(self, name: str) -> dict[int, UploadPart]:
        with contextlib.suppress(FileNotFoundError):
            entries = self._markers(name).iterdir()
            found = filter(None, (UploadPart.of(entry.name) for entry in entries))
            return {part.number: part for part in found}
        return {}

    def names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in (self._folder / "parts").iterdir())
        return []

    def begin(self, name: str, part: UploadPart) -> PartWriter:
        self._leave_published(name)
        self._forget_part(name, part.number)
        for folder in (self._data(name).parent, self._markers(name)):
            folder.mkdir(parents=True, exist_ok=True)
        start = (part.number - 1) * self._part_bytes
        return _RegionWriter(self._data(name), start, self._markers(name) / part.marker, self)

    def _leave_published(self, name: str) -> None:
        """Begin anew where the file has another name already, so that no checkpoint is changed."""
        with contextlib.suppress(FileNotFoundError):
            if self._data(name).stat().st_nlink > 1:
                self.clear(name)

    def _forget_part(self, name: str, number: int) -> None:
        former = self.parts(name).get(number)
        if former is not None:
            (self._markers(name) / former.marker).unlink(missing_ok=True)

    def adopt(self, name: str, source: Store, source_name: str) -> None:
        assert isinstance(source, LocalStore)
        self._data(name).parent.mkdir(parents=True, exist_ok=True)
        os.link(source.path / check_name(source_name), self._data(name))

    def clear(self, name: str) -> None:
        shutil.rmtree(self._markers(name), ignore_errors=True)
        self._data(name).unlink(missing_ok=True)
        _followers.forget(self._data(name))

    def follow(self, name: str) -> None:
        """Hash what has arrived without a gap, in the background."""
        _followers.follow(self._data(name), self._part_bytes, lambda: self.parts(name))

    def check(self, name: str, parts: list[UploadPart], sha256: str) -> None:
        path = self._data(name)
        if not parts:
            return
        with path.open("r+b") as file:
            # A part that was sent again may have been longer.
            file.truncate(sum(part.size_bytes for part in parts))
            os.fsync(file.fileno())
        if _followers.finish(path, self._part_bytes, parts) != sha256:
            raise WrongFileError(name)

    def publish(
        self,
        name: str,
        parts: list[UploadPart],
        sha256: str,
        target: Store,
        *,
        adopted: tuple[Store, str] | None,
        tick: Callable[[], None],
    ) -> None:
        assert isinstance(target, LocalStore)
        make_folder(target.path)
        # A second link, so that a commit that was cut short can be made again.
        temporary = target.path / f".{name}.{secrets.token_hex(8)}.luma-tmp"
        try:
            os.link(self._data(name), temporary)
        except OSError:
            shutil.copyfile(self._data(name), temporary)
        temporary.replace(target.path / check_name(name))
        # Where both were links to one file, replacing leaves the first.
        temporary.unlink(missing_ok=True)
        sync_folder(target.path)
        tick()

    def discard(self) -> None:
        for name in self.names():
            _followers.forget(self._data(name))
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        shutil.rmtree(self._folder / "parts", ignore_errors=True)


class _RegionWriter(PartWriter):
    def __init__(self, path: Path, start: int, marker: Path, staging: LocalStagingArea) -> None:
        self._staging = staging
        self._name = path.name
        self._marker = marker
        self._at = start
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)

    def write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, self._at)
            self._at += count
            view = view[count:]

    def commit(self) -> None:
        self._marker.touch()
        self.discard()
        self._staging.follow(self._name)

    def discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class _Follower:
    """The SHA-256 of a file's beginning."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queued = False
        self._parts: list[UploadPart] = []
        self._hash = hashlib.sha256()

    def advance(self, path: Path, part_bytes: int, parts: list[UploadPart]) -> None:
        """Go on to the end of ``parts``; from the start where one was replaced."""
        if self._parts != parts[: len(self._parts)]:
            self._parts, self._hash = [], hashlib.sha256()
        with opened(path) as file:
            for part in parts[len(self._parts) :]:
                file.seek((part.number - 1) * part_bytes)
                left = part.size_bytes
                while left and (data := file.read(min(READ_BYTES, left))):
                    self._hash.update(data)
                    left -= len(data)
                self._parts.append(part)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Followers:
    """Hashes files while they arrive, so that little is left to do at their commit."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, _Follower] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, "luma-hash")

    def _get(self, path: Path) -> _Follower:
        with self._lock:
            follower = self._known.setdefault(path, _Follower())
            self._known.move_to_end(path)
            while len(self._known) > _FOLLOWED:
                self._known.popitem(last=False)
        return follower

    def follow(
        self, path: Path, part_bytes: int, parts: Callable[[], dict[int, UploadPart]]
    ) -> None:
        follower = self._get(path)

        def advance() -> None:
            with follower.lock:
                follower.queued = False
                # A session that ended meanwhile has taken its files along.
                with contextlib.suppress(OSError):
                    follower.advance(path, part_bytes, _without_gap(parts()))

        if not follower.queued:
            follower.queued = True
            self._pool.submit(advance)

    def finish(self, path: Path, part_bytes: int, parts: list[UploadPart]) -> str:
        follower = self._get(path)
        with follower.lock:
            follower.advance(path, part_bytes, parts)
            return follower.hexdigest()

    def forget(self, path: Path) -> None:
        with self._lock:
            self._known.pop(path, None)


def _without_gap(parts: dict[int, UploadPart]) -> list[UploadPart]:
    found: list[UploadPart] = []
    while (part := parts.get(len(found) + 1)) is not None:
        found.append(part)
    return found


_followers = _Followers()
