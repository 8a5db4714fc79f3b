"""A cache of statistics that outlives the process, filled by one server at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator

from luma_core import __version__
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import ConcurrentSaveError, StorageError
from luma_core.stats import STATS_VERSION
from luma_server.catalog.claims import held, remove_left
from luma_server.catalog.place import Root

_log = logging.getLogger(__name__)

STALE_SECONDS = 120.0
"""A claim on a computation that was not renewed for that long is of a server that is gone."""

UNUSED_SECONDS = 86400.0
"""How old statistics must be before they are removed because no checkpoint is theirs."""

_STATS = "stats"
_CLAIMS = "measuring"
_MAX_BYTES = 256 << 20
_HASH_BYTES = 64
_NAME = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{8}\.json")


class MeasuredElsewhereError(Exception):
    """Another server computes the statistics of that checkpoint."""


class StatisticsCache:
    """Statistics of whole checkpoints, by the digest of the manifest. Its methods block.

    Args:
        root: where checkpoints are.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._store = root.private(_STATS)

    def load(self, digest: str) -> bytes | None:
        """Return what is cached; ``None`` where there is nothing, or it is damaged."""
        try:
            found = self._store.read_range(_name(digest), 0, _MAX_BYTES)
        except OSError:
            return None
        body = found[_HASH_BYTES:]
        return body if hashlib.sha256(body).hexdigest().encode() == found[:_HASH_BYTES] else None

    def save(self, digest: str, body: bytes) -> None:
        """Cache statistics; a root that may only be read is served all the same."""
        try:
            with storage_errors(_STATS), self._store.write(_name(digest)) as out:
                out.write(hashlib.sha256(body).hexdigest().encode())
                out.write(body)
                out.commit()
        except StorageError as error:
            _log.warning("statistics were not cached: %s", self._root.hide(error.message))

    def forget(self, digest: str) -> None:
        """Remove the statistics of a checkpoint that is gone.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(_STATS):
            self._store.delete(_name(digest))

    @contextlib.contextmanager
    def computing(self, digest: str) -> Iterator[None]:
        """Keep other servers from computing the same meanwhile.

        Where nothing can be claimed, as the root may only be read, or where the claim is lost, two
        may compute the same: their results are equal.

        Raises:
            MeasuredElsewhereError: another one computes it.
        """
        with contextlib.ExitStack() as stack:
            try:
                store = self._root.private(_CLAIMS, digest)
                stack.enter_context(held(store, digest, stale_seconds=STALE_SECONDS))
            except ConcurrentSaveError as error:
                raise MeasuredElsewhereError from error
            except OSError as error:
                _log.debug("no claim: %s", self._root.hide(str(error)))
            yield

    def sweep(self, referred: Callable[[], set[str]]) -> None:
        """Remove what is cached of checkpoints that are gone, and claims of servers that are gone.

        Removed are only files that are named as this class names them, and written long ago: their
        checkpoint may be one that is about to appear, or that is being replaced.

        Args:
            referred: returns the digests of all checkpoints.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(_STATS):
            self._store.discard_leftovers(older_than_seconds=UNUSED_SECONDS)
            remove_left(self._root.private(_CLAIMS), stale_seconds=STALE_SECONDS)
            digests = {
                name: found[1] for name in self._store.names() if (found := _NAME.fullmatch(name))
            }
            if not digests:
                return
            used, latest = referred(), time.time() - UNUSED_SECONDS
            for name in (name for name, digest in digests.items() if digest not in used):
                written = self._store.modified(name)
                if written is not None and written <= latest:
                    self._store.delete(name)


def _name(digest: str) -> str:
    """Return the name of cached statistics: other software may count other things."""
    software = hashlib.sha256(f"{__version__} {STATS_VERSION}".encode()).hexdigest()[:8]
    return f"{digest}.{software}.json"
