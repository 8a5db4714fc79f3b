"""The checkpoints under the root, and nothing outside it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from luma_core import checkpoint
from luma_core.checkpoint import Checkpoint
from luma_core.checkpoint.format import MANIFEST_NAME, FileEntry
from luma_core.checkpoint.format.manifest import MAX_MANIFEST_BYTES
from luma_core.checkpoint.storage import check_name
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import (
    BrokenChainError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LumaError,
    StorageError,
    UnsafeNameError,
)
from luma_core.wire import CheckpointInfo
from luma_server.catalog.annotations import Annotation, Annotations
from luma_server.catalog.cache import BoundedCache
from luma_server.catalog.claims import sweep_claims
from luma_server.catalog.listing import Seen, open_listing
from luma_server.catalog.place import Root, not_found
from luma_server.catalog.summary import Summary, quick_summary, summary_of
from luma_server.catalog.summary_cache import SummaryCache

_FILES = 1 << 17
"""Entries of files cached in memory with those of their checkpoints: a few hundred bytes each."""

_LEARNED = 16
"""A push mostly shares files with one of the last checkpoints of its run."""

_READERS = 16
_BATCH = 64


class Catalog:
    """Reads checkpoints below the root; every method blocks on the store and is thread-safe.

    Nothing is cached but summaries of manifests, each for as long as its manifest is the same;
    where the root is not local, in its private area as well.

    Args:
        root: where they are.
        list_cache_seconds: for roots that are not local: how old a listing may be.
    """

    def __init__(self, root: Root | str | os.PathLike[str], list_cache_seconds: float = 0) -> None:
        self.root = root if isinstance(root, Root) else Root(root)
        self.annotations = Annotations(self.root, list_cache_seconds)
        self._listing = open_listing(self.root, list_cache_seconds)
        self._cache: BoundedCache[tuple[str, str, str], Summary] = BoundedCache(_FILES)
        self._contents: BoundedCache[str, tuple[str, str, str]] = BoundedCache(_FILES)
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_READERS, "luma-manifests")
        remote = self.root.folder is None
        self._saved = SummaryCache(self.root, self._known_of_run) if remote else None

    def close(self) -> None:
        """End what is at work in the background."""
        if self._saved is not None:
            self._saved.close()
        self._listing.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def seen(self, run: str | None = None, after: Seen | None = None) -> Iterator[Seen]:
        """Yield committed checkpoints by run and step, looking for them when they are wanted.

        Args:
            run: name of the run; ``None`` for all.
            after: where to begin: behind this one, which need not be there.

        Raises:
            StorageError: the store failed.
        """
        return self._listing.walk(run, after)

    def infos(self, seen: Iterable[Seen]) -> Iterator[CheckpointInfo]:
        """Yield the listing entries of checkpoints; those that vanished meanwhile are left out."""
        rest = iter(seen)
        while batch := list(islice(rest, _BATCH)):
            cached = [self._cached_summary(one) for one in batch]
            if None in cached:
                self._load({one.run for one in batch})
                cached = [self._cached_summary(one) for one in batch]
            missing = [one for one, summary in zip(batch, cached, strict=True) if summary is None]
            read = iter(self._readers.map(self._summary, missing))
            notes = {run: self.annotations.of_run(run) for run in {one.run for one in batch}}
            for one, known in zip(batch, cached, strict=True):
                summary = known or next(read)
                if summary is not None:
                    yield _annotated(summary.info, notes[one.run].get(one.step))

    def _load(self, runs: set[str]) -> None:
        if self._saved is None:
            return
        for run in runs:
            for step, (identity, summary) in self._saved.load(run).items():
                self._keep(Seen(run, step, identity), summary)

    def _known_of_run(self, run: str) -> dict[str, tuple[str, Summary]]:
        cached = ((one, self._cached_summary(one)) for one in self._listing.walk(run))
        return {one.step: (one.identity, summary) for one, summary in cached if summary is not None}

    def list(self) -> list[CheckpointInfo]:
        """Return the listing entries of all committed checkpoints, by run and step."""
        return list(self.infos(self.seen()))

    def digests(self) -> set[str]:
        """Return the digests of the manifests of all committed checkpoints that can be read."""
        return {info.digest for info in self.list() if info.digest is not None}

    def info(self, run: str, step: str) -> CheckpointInfo:
        """Return the listing entry of one checkpoint, which may hold an error.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
        """
        info = self.summary(run, step).info
        return _annotated(info, self.annotations.of(run, step))

    def summary(self, run: str, step: str) -> Summary:
        """Return what is known of one checkpoint, as its manifest is now.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
        """
        self.root.checkpoint(run, step)
        seen = self._listing.look(run, step)
        summary = None if seen is None else self._cached_summary(seen) or self._summary(seen)
        if summary is None:
            raise not_found(run, step)
        return summary

    def files(self, run: str, step: str) -> tuple[FileEntry, ...]:
        """Return what the manifest of a checkpoint names.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        summary = self.summary(run, step)
        return summary.files if summary.info.error is None else self.open(run, step).manifest.files

    def open(self, run: str, step: str) -> Checkpoint:
        """Open one checkpoint.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint, or a part of it lies elsewhere.
            CorruptCheckpointError: its manifest cannot be trusted.
            UnsupportedVersionError: a newer version wrote it.
        """
        return self._open(run, step, None)

    def _open(self, run: str, step: str, longest_chain: int | None) -> Checkpoint:
        store = self.root.checkpoint(run, step)
        self.check_inside(run, step, [MANIFEST_NAME])
        try:
            opened = checkpoint.open(store)
        except UnsafeNameError as error:
            raise CorruptCheckpointError(error.message) from error
        except CheckpointNotFoundError as error:
            raise not_found(run, step) from error
        self.check_inside(run, step, [file.name for file in opened.manifest.files])
        base = opened.manifest.base
        if longest_chain is not None and opened.manifest.chain > longest_chain:
            raise BrokenChainError(f"{run}/{step} is not the base that another one was made from.")
        if base is not None and self.root.folder is not None:
            # Each member of the chain is looked at, for it is read by the same names.
            self._open(run, base.folder, base.chain)
        return opened

    def manifest_bytes(self, run: str, step: str) -> tuple[bytes, str]:
        """Return ``luma.json`` and the digest of the manifest in it.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        manifest = self.open(run, step).manifest
        return manifest.to_bytes(), manifest.digest

    def sweep(self) -> None:
        """Remove what is left of runs and of servers that are gone.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors("claims"):
            sweep_claims(self.root)
        if self._saved is not None:
            self._saved.sweep(set(self._listing.runs()))

    def changed(self, run: str, step: str) -> None:
        """Take note that this server wrote or removed a checkpoint."""
        self._listing.changed(run, step)

    def needed_by(self, run: str, step: str) -> str | None:
        """Return a step of the run that is a difference to this one; ``None`` where none is."""
        self._load({run})
        for one in self._listing.walk(run):
            summary = self._cached_summary(one) or self._summary(one)
            if summary is not None and summary.base == step:
                return one.step
        return None

    def learn(self, run: str) -> None:
        """Get to know the contents of a run's last checkpoints."""
        self._load({run})
        for one in deque(self.seen(run), _LEARNED):
            if self._cached_summary(one) is None:
                self._summary(one)

    def find_content(
        self, sha256: str, size_bytes: int, allowed: Callable[[str], bool]
    ) -> tuple[str, str, str] | None:
        """Return run, step and name of a file that has that content, if one is known.

        Args:
            sha256: of the content, hex.
            size_bytes: its size.
            allowed: whether a run may be looked into.
        """
        with self._lock:
            place = self._contents.get(sha256)
        if place is None or not allowed(place[0]):
            return None
        try:
            files = self.summary(place[0], place[1]).files
        except LumaError:
            return None
        wanted = (place[2], size_bytes, sha256)
        found = any((file.name, file.bytes, file.sha256) == wanted for file in files)
        return place if found else None

    def check_inside(self, run: str, step: str, names: Sequence[str]) -> None:
        """Check that files of a checkpoint are inside the root, their links followed.

        Raises:
            CheckpointNotFoundError: one is not.
        """
        if self.root.folder is None:
            return
        folder = self.root.folder / run / step
        if not all(self.root.holds(folder / check_name(name)) for name in names):
            raise not_found(run, step)

    def _cached_summary(self, seen: Seen) -> Summary | None:
        with self._lock:
            return self._cache.get((seen.run, seen.step, seen.identity))

    def _summary(self, seen: Seen) -> Summary | None:
        try:
            summary = self._read_summary(seen.run, seen.step)
        except CheckpointNotFoundError:
            return None
        except StorageError:
            raise
        except LumaError as error:
            # Tried again each time: permissions and codecs change without the file.
            error_text = self.root.hide(error.message)
            return Summary(CheckpointInfo(run=seen.run, step=seen.step, error=error_text))
        self._keep(seen, summary)
        if self._saved is not None:
            self._saved.changed(seen.run)
        return summary

    def _keep(self, seen: Seen, summary: Summary) -> None:
        with self._lock:
            self._cache.put((seen.run, seen.step, seen.identity), summary, 1 + len(summary.files))
            for file in summary.files:
                self._contents.put(file.sha256, (seen.run, seen.step, file.name), 1)

    def _read_summary(self, run: str, step: str) -> Summary:
        store = self.root.checkpoint(run, step)
        self.check_inside(run, step, [MANIFEST_NAME])
        with storage_errors(f"{run}/{step}"):
            try:
                data = store.read_range(MANIFEST_NAME, 0, MAX_MANIFEST_BYTES + 1)
            except FileNotFoundError as error:
                raise not_found(run, step) from error
        summary = quick_summary(run, step, data)
        if summary is None:
            return summary_of(run, step, self.open(run, step).manifest)
        self.check_inside(run, step, [file.name for file in summary.files])
        base, local = summary.base, self.root.folder is not None
        if base is not None and local and self._listing.look(run, base) is None:
            raise not_found(run, step)
        return summary


def _annotated(info: CheckpointInfo, note: Annotation | None) -> CheckpointInfo:
    if note is None or not (note.pinned or note.labels):
        return info
    return replace(info, pinned=note.pinned, labels=note.labels)
