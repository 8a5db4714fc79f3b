"""A cache of summaries that outlives the process, where reading a manifest takes a request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import LumaError
from luma_server.catalog.place import Root
from luma_server.catalog.summary import Summary

_log = logging.getLogger(__name__)

SAVE_SECONDS = 2.0
"""How long summaries are collected before they are written."""

UNUSED_SECONDS = 86400.0
"""How old summaries must be before they are removed because their run is gone."""

Entries = Mapping[str, tuple[str, Summary]]
"""By step: the identity of the manifest, and its summary."""

_FOLDER = "summaries"
_NAME = "summaries-1.json"
_MAX_BYTES = 64 << 20
_adapter = TypeAdapter(dict[str, tuple[str, Summary]])


class SummaryCache:
    """One object for each run, written behind; whoever writes last wins. Thread-safe.

    What is lost or damaged is read again from the manifests, as what is there counts only for a
    manifest of the same identity.

    Args:
        root: where checkpoints are.
        entries: returns what is known of a run when it is to be written.
    """

    def __init__(self, root: Root, entries: Callable[[str], Entries]) -> None:
        self._root = root
        self._store = root.private(_FOLDER)
        self._entries = entries
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._loaded: set[str] = set()
        self._changed: set[str] = set()
        self._timer: threading.Timer | None = None
        self._closed = False

    def load(self, run: str) -> Entries:
        """Return what was cached of a run, the first time it is asked for; later nothing."""
        with self._lock:
            if run in self._loaded:
                return {}
        try:
            with storage_errors(_FOLDER):
                data = self._store.folder(run).read_range(_NAME, 0, _MAX_BYTES + 1)
            found = _adapter.validate_json(data) if len(data) <= _MAX_BYTES else {}
        except (LumaError, FileNotFoundError, ValidationError):
            found = {}
        with self._lock:
            self._loaded.add(run)
        return found

    def changed(self, run: str) -> None:
        """Take note that more is known of a run."""
        with self._lock:
            self._changed.add(run)
            if self._timer is None and not self._closed:
                self._timer = threading.Timer(SAVE_SECONDS, self._save)
                self._timer.daemon = True
                self._timer.start()

    def sweep(self, runs: set[str]) -> None:
        """Remove what was cached long ago of runs that have no checkpoints any more.

        Args:
            runs: those that have some.

        Raises:
            StorageError: the store failed.
        """
        latest = time.time() - UNUSED_SECONDS
        with storage_errors(_FOLDER):
            for run in set(self._store.folders()) - runs:
                store = self._store.folder(run)
                written = store.modified(_NAME)
                if written is not None and written <= latest:
                    store.delete(_NAME)
                    store.remove_folder()

    def close(self) -> None:
        """Write what has not been written; blocks."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            timer.join()
        self._save()

    def _save(self) -> None:
        # `close` waits for a timer's save that has begun: it is no longer the one in `_timer`.
        with self._saving:
            with self._lock:
                runs, self._changed = self._changed, set()
                self._timer = None
            for run in runs:
                try:
                    body = _adapter.dump_json(dict(self._entries(run)))
                    with storage_errors(_FOLDER), self._store.folder(run).write(_NAME) as out:
                        out.write(body)
                        out.commit()
                except LumaError as error:
                    # A root that may only be read is served all the same.
                    _log.warning("summaries were not cached: %s", self._root.hide(error.message))
                    # The store fails, and the others would each wait for it as long.
                    return
