"""The checkpoints under the root, and nothing outside it."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from luma_core import checkpoint
from luma_core.checkpoint import MANIFEST_NAME, Checkpoint, check_name
from luma_core.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LumaError,
    StorageError,
    UnsafeNameError,
)
from luma_core.wire import CheckpointInfo
from luma_server.cache import BoundedCache

_log = logging.getLogger(__name__)

_INFOS = 4096
"""Listing entries kept in memory: a few hundred bytes each."""

FileIdentity = tuple[str, int, int, int]


class Catalog:
    """Reads checkpoints below ``root``; every method blocks on the disk and is thread-safe.

    Nothing is kept but listing entries, each for as long as its manifest is the same file.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._infos: BoundedCache[FileIdentity, CheckpointInfo] = BoundedCache(_INFOS)
        self._lock = threading.Lock()

    def list(self) -> list[CheckpointInfo]:
        """Return all committed checkpoints, by run and step."""
        found = [
            self._info(run, step) for run in self._folders(self._root) for step in self._steps(run)
        ]
        return sorted((info for info in found if info is not None), key=_natural_order)

    def info(self, run: str, step: str) -> CheckpointInfo:
        """Return the listing entry of one checkpoint, which may hold an error.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
        """
        self._folder(run, step)
        info = self._info(run, step)
        if info is None:
            raise _not_found(run, step)
        return info

    def open(self, run: str, step: str) -> Checkpoint:
        """Open one checkpoint.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint, or a part of it lies elsewhere.
            CorruptCheckpointError: its manifest cannot be trusted.
            UnsupportedVersionError: a newer version wrote it.
        """
        folder = self._folder(run, step)
        try:
            opened = checkpoint.open(folder)
        except UnsafeNameError as error:
            raise CorruptCheckpointError(error.message) from error
        for file in opened.manifest.files:
            if not self._is_inside(folder / check_name(file.name)):
                raise _not_found(run, step)
        return opened

    def hide_root(self, text: str) -> str:
        """Return ``text`` without the path of the root; unchanged where the root is ``/``."""
        if self._root == Path(self._root.anchor):
            return text
        return text.replace(f"{self._root}{os.sep}", "").replace(str(self._root), "the root")

    def _folder(self, run: str, step: str) -> Path:
        folder = self._root / check_name(run) / check_name(step)
        manifest = folder / MANIFEST_NAME
        if not self._is_inside(manifest) or not manifest.is_file():
            raise _not_found(run, step)
        return folder

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _steps(self, run: str) -> Iterator[str]:
        return self._folders(self._root / run)

    def _folders(self, parent: Path) -> Iterator[str]:
        try:
            entries = list(parent.iterdir())
        except OSError as error:
            if parent == self._root:
                raise StorageError(f"{parent}: {error.strerror}.") from error
            _log.warning("a run was left out of the listing: %s", error)
            return
        for entry in entries:
            try:
                check_name(entry.name)
            except UnsafeNameError:
                continue
            if self._is_inside(entry) and entry.is_dir():
                yield entry.name

    def _info(self, run: str, step: str) -> CheckpointInfo | None:
        manifest = self._root / run / step / MANIFEST_NAME
        if not self._is_inside(manifest):
            return None
        try:
            stat = manifest.stat()
        except OSError:
            return None
        key = (f"{run}/{step}", stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            known = self._infos.get(key)
        if known is not None:
            return known
        info = self._read_info(run, step)
        # What could not be read is tried again: permissions and codecs change without the file.
        if info is not None and info.error is None:
            with self._lock:
                self._infos.put(key, info, 1)
        return info

    def _read_info(self, run: str, step: str) -> CheckpointInfo | None:
        try:
            manifest = self.open(run, step).manifest
        except CheckpointNotFoundError:
            return None
        except LumaError as error:
            return CheckpointInfo(run=run, step=step, error=self.hide_root(error.message))
        return CheckpointInfo(
            run=run,
            step=step,
            created=manifest.created,
            algorithm=manifest.algorithm,
            optimizer_step=manifest.summary.step,
            parameters=manifest.summary.parameters,
            elements=manifest.summary.elements,
            state_bytes=manifest.summary.state_bytes,
            stored_bytes=manifest.summary.stored_bytes,
            digest=manifest.digest,
        )


def _not_found(run: str, step: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"there is no checkpoint {run}/{step}.",
        hint="GET /v1/checkpoints lists those there are.",
    )


Parts = list[tuple[int, int, str]]


def _natural_order(info: CheckpointInfo) -> tuple[Parts, Parts]:
    return _parts(info.run), _parts(info.step)


def _parts(name: str) -> Parts:
    """Cut a name so that ``step-9`` comes before ``step-10``."""
    return [
        (1, int(part), part) if part.isdigit() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    ]
