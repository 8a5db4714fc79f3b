"""Pins and labels: what people keep beside checkpoints, in the server's own area of the store."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.storage.store import ABSENT, Store, Version, storage_errors
from luma_core.errors import ConcurrentSaveError, CorruptCheckpointError
from luma_server.catalog.place import Root

_FOLDER = "annotations"
_NAME = "annotations.json"
_MAX_BYTES = 64 << 20
_ATTEMPTS = 30
_WAIT_SECONDS = 0.02


@dataclass(frozen=True)
class Annotation:
    """What is kept beside one checkpoint.

    Attributes:
        pinned: whether it may not be deleted or replaced.
        labels: by key.
    """

    pinned: bool = False
    labels: dict[str, str] = field(default_factory=dict)


_NOTHING = Annotation()
_adapter = TypeAdapter(dict[str, Annotation])


class Annotations:
    """One small object for each run. Thread-safe; every method may block on the store.

    Changes replace exactly the object they were made from, so several servers lose none.

    Args:
        root: where checkpoints are.
        max_age_seconds: for roots that are not local: how old an answer may be.
    """

    def __init__(self, root: Root, max_age_seconds: float) -> None:
        self._store = root.private(_FOLDER)
        self._max_age_seconds = 0.0 if root.folder is not None else max_age_seconds
        self._known: dict[str, tuple[float, Version, dict[str, Annotation]]] = {}
        self._lock = threading.Lock()

    def of_run(self, run: str) -> dict[str, Annotation]:
        """Return the annotations of a run by step.

        Raises:
            StorageError: the store failed.
        """
        with self._lock:
            known = self._known.get(run)
        now = time.monotonic()
        if known is not None and now - known[0] < self._max_age_seconds:
            return known[2]
        with storage_errors("annotations"):
            store = self._store.folder(run)
            version = store.version(_NAME)
            if known is not None and known[1] == version:
                return self._keep(run, version, known[2], now)
            return self._keep(run, version, _read(store, version), now)

    def of(self, run: str, step: str) -> Annotation:
        """Return the annotation of one checkpoint."""
        return self.of_run(run).get(step, _NOTHING)

    def pin(self, run: str, step: str, pinned: bool) -> None:
        """Pin a checkpoint, or let it go."""
        self._change(run, step, lambda old: replace(old, pinned=pinned))

    def label(self, run: str, step: str, labels: dict[str, str]) -> None:
        """Give a checkpoint other labels."""
        self._change(run, step, lambda old: replace(old, labels=labels))

    def forget(self, run: str, step: str) -> None:
        """Remove the annotation of a checkpoint that is gone."""
        if self.of(run, step) != _NOTHING:
            self._change(run, step, lambda _: _NOTHING)

    def pinned_now(self, run: str, step: str) -> bool:
        """Whether a checkpoint is pinned, by the store and not by what was read before."""
        with self._lock:
            self._known.pop(run, None)
        return self.of(run, step).pinned

    def _change(self, run: str, step: str, change: Callable[[Annotation], Annotation]) -> None:
        store = self._store.folder(run)
        with storage_errors("annotations"):
            for _ in range(_ATTEMPTS - 1):
                with contextlib.suppress(ConcurrentSaveError):
                    return self._try_change(store, run, step, change)
                time.sleep(_WAIT_SECONDS * random.uniform(0.5, 1.5))
            return self._try_change(store, run, step, change)

    def _try_change(
        self, store: Store, run: str, step: str, change: Callable[[Annotation], Annotation]
    ) -> None:
        with store.exclusive():
            version = store.version(_NAME)
            entries = dict(_read(store, version))
            changed = change(entries.pop(step, _NOTHING))
            if changed != _NOTHING:
                entries[step] = changed
            body = json.dumps({name: asdict(entry) for name, entry in entries.items()})
            with store.write(_NAME, expected=version) as out:
                out.write(body.encode())
                out.commit()
            self._keep(run, store.version(_NAME), entries, time.monotonic())

    def _keep(
        self, run: str, version: Version, entries: dict[str, Annotation], when: float
    ) -> dict[str, Annotation]:
        with self._lock:
            self._known[run] = (when, version, entries)
        return entries


def _read(store: Store, version: Version) -> dict[str, Annotation]:
    if version == ABSENT:
        return {}
    try:
        return _adapter.validate_json(store.read_range(_NAME, 0, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise CorruptCheckpointError("the labels and pins of that run are damaged.") from error
