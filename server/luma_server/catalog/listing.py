"""Which checkpoints there are, without opening any: names, and what tells their manifests apart."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from luma_core.checkpoint.format import MANIFEST_NAME
from luma_core.checkpoint.storage.names import is_safe_name
from luma_core.checkpoint.storage.remote import FsspecStore
from luma_core.checkpoint.storage.store import storage_errors
from luma_server.catalog.place import PRIVATE_FOLDER, Root

_log = logging.getLogger(__name__)

_MARKS = ("ETag", "etag", "md5Hash", "mtime", "created", "LastModified")

OrderKey = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Seen:
    """A manifest that is there.

    Attributes:
        run: its run.
        step: its step.
        identity: differs from that of any other manifest that was or will be there.
    """

    run: str
    step: str
    identity: str

    @property
    def order(self) -> tuple[OrderKey, OrderKey]:
        """Sorts by run and step, so that ``step-9`` comes before ``step-10``."""
        return natural_order(self.run), natural_order(self.step)


@lru_cache(maxsize=1 << 16)
def natural_order(name: str) -> OrderKey:
    """Return what sorts names by the numbers in them."""
    return tuple(
        (1, int(part), part) if part.isdigit() else (0, 0, part)
        for part in re.split(r"(\d+)", name)
    )


class Listing(ABC):
    """The manifests below a root. Thread-safe; every method may block on the store."""

    @abstractmethod
    def runs(self) -> list[str]:
        """Return the names of what may be runs, in no particular order.

        Raises:
            StorageError: the store failed.
        """

    @abstractmethod
    def steps(self, run: str) -> list[str]:
        """Return the names of what may be steps of a run, in no particular order."""

    @abstractmethod
    def entry(self, run: str, step: str) -> Seen | None:
        """Return the manifest that one of `steps` has; ``None`` where it has none."""

    def walk(self, run: str | None = None, after: Seen | None = None) -> Iterator[Seen]:
        """Yield the manifests of one run or of all, by run and step, looking when they are wanted.

        Args:
            run: name of the run; ``None`` for all.
            after: where to begin: behind this one, which need not be there.

        Raises:
            StorageError: the store failed.
        """
        begin = None if after is None else after.order
        for name in sorted(self.runs() if run is None else [run], key=natural_order):
            if begin is not None and natural_order(name) < begin[0]:
                continue
            same = begin is not None and natural_order(name) == begin[0]
            for step in sorted(self.steps(name), key=natural_order):
                if same and begin is not None and natural_order(step) <= begin[1]:
                    continue
                found = self.entry(name, step)
                if found is not None:
                    yield found

    @abstractmethod
    def look(self, run: str, step: str) -> Seen | None:
        """Look at one manifest now; return ``None`` where there is none."""

    @abstractmethod
    def changed(self, run: str, step: str) -> None:
        """Take note that this server wrote or removed a checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """End what is at work in the background."""


def open_listing(root: Root, max_age_seconds: float) -> Listing:
    """Return the listing of a root.

    Args:
        root: where to look.
        max_age_seconds: for roots that are not local: how old an answer may be before it is
            fetched anew.
    """
    if root.folder is not None:
        return LocalListing(root)
    assert isinstance(root.store, FsspecStore)
    return RemoteListing(root.store, max_age_seconds)


class LocalListing(Listing):
    """Looks into folders each time: a scan and one ``lstat`` for each checkpoint."""

    def __init__(self, root: Root) -> None:
        assert root.folder is not None
        self._root = root
        self._folder = root.folder

    def runs(self) -> list[str]:
        with storage_errors("the root"):
            return list(self._folders(str(self._folder)))

    def steps(self, run: str) -> list[str]:
        if not is_safe_name(run) or not self._is_folder(self._folder / run):
            return []
        try:
            return list(self._folders(f"{self._folder}/{run}"))
        except OSError as error:
            _log.warning("a run was left out of the listing: %s", error)
            return []

    def entry(self, run: str, step: str) -> Seen | None:
        return self._identify(run, step, f"{self._folder}/{run}/{step}/{MANIFEST_NAME}")

    def look(self, run: str, step: str) -> Seen | None:
        path = self._folder / run / step / MANIFEST_NAME
        return self._identify(run, step, str(path)) if self._root.holds(path) else None

    def changed(self, run: str, step: str) -> None:
        """Do nothing: what changed is seen the next time."""

    def close(self) -> None:
        """Do nothing: there is no such work."""

    def _is_folder(self, path: Path) -> bool:
        return path.is_dir() and self._root.holds(path)

    def _folders(self, parent: str) -> Iterator[str]:
        with os.scandir(parent) as entries:
            for entry in entries:
                if not is_safe_name(entry.name):
                    continue
                # Resolving a path takes longer than all the rest, and only a link leads elsewhere.
                if entry.is_symlink():
                    if self._is_folder(Path(entry.path)):
                        yield entry.name
                elif entry.is_dir():
                    yield entry.name

    def _identify(self, run: str, step: str, path: str) -> Seen | None:
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                if not self._root.holds(Path(path)):
                    return None
                found = Path(path).stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Seen(run, step, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")


class RemoteListing(Listing):
    """Lists the whole prefix at once, and answers from that while it is young.

    Between ``max_age_seconds`` and ten times that the old answer is given while a new one is
    fetched, so only the first caller after a pause waits for the store.
    """

    def __init__(self, store: FsspecStore, max_age_seconds: float) -> None:
        self._store = store
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Seen]] = {}
        self._fetched = float("-inf")
        self._changes: dict[tuple[str, str], float] = {}
        self._running: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "luma-listing")

    def runs(self) -> list[str]:
        self._refresh()
        with self._lock:
            return list(self._known)

    def steps(self, run: str) -> list[str]:
        self._refresh()
        with self._lock:
            return list(self._known.get(run, ()))

    def entry(self, run: str, step: str) -> Seen | None:
        with self._lock:
            return self._known.get(run, {}).get(step)

    def _refresh(self) -> None:
        running = self._refresh_if_old()
        if running is not None:
            running.result()

    def _refresh_if_old(self) -> Future[None] | None:
        """Begin to fetch where that is due; return what to wait for, if anything."""
        with self._lock:
            age = time.monotonic() - self._fetched
            if age <= self._max_age_seconds:
                return None
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._fetch)
            return None if age <= 10 * self._max_age_seconds else self._running

    def _fetch(self) -> None:
        began = time.monotonic()
        with storage_errors("the root"):
            try:
                entries: dict[str, Any] = self._store.call("find", self._store.path, detail=True)
            except FileNotFoundError:
                entries = {}
        found: dict[str, dict[str, Seen]] = {}
        for seen in filter(None, map(self._identify, entries.items())):
            found.setdefault(seen.run, {})[seen.step] = seen
        with self._lock:
            # What this server changed since the listing was begun is known better.
            for (run, step), when in list(self._changes.items()):
                if when < began:
                    del self._changes[run, step]
                    continue
                _set(found, run, step, self._known.get(run, {}).get(step))
            self._known, self._fetched = found, began

    def _identify(self, entry: tuple[str, dict[str, Any]]) -> Seen | None:
        path, info = entry
        parts = path.strip("/").removeprefix(self._store.path.strip("/")).strip("/").split("/")
        if len(parts) != 3 or parts[2] != MANIFEST_NAME or parts[0] == PRIVATE_FOLDER:
            return None
        if not (is_safe_name(parts[0]) and is_safe_name(parts[1])):
            return None
        return Seen(parts[0], parts[1], _identity(info))

    def look(self, run: str, step: str) -> Seen | None:
        store = self._store.folder(run).folder(step)
        assert isinstance(store, FsspecStore)
        with storage_errors(f"{run}/{step}"):
            try:
                info = store.call("info", store.path_of(MANIFEST_NAME))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Seen(run, step, _identity(info)) if info.get("type") == "file" else None

    def changed(self, run: str, step: str) -> None:
        found = self.look(run, step)
        with self._lock:
            self._changes[run, step] = time.monotonic()
            _set(self._known, run, step, found)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _set(known: dict[str, dict[str, Seen]], run: str, step: str, seen: Seen | None) -> None:
    steps = known.setdefault(run, {})
    steps.pop(step, None)
    if seen is not None:
        steps[step] = seen
    if not steps:
        del known[run]


def _identity(info: dict[str, Any]) -> str:
    # Listings and single looks tell times of different precision, so one mark has to do.
    mark = next((info[key] for key in _MARKS if info.get(key) is not None), "")
    return f"{info.get('size')}|{mark}"
