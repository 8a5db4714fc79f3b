"""What the routes do, apart from HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from pydantic import TypeAdapter

from luma_core import __version__, stats
from luma_core.checkpoint.store import storage_errors
from luma_core.errors import CorruptCheckpointError, ServiceError, StorageError
from luma_core.stats import CheckpointStats
from luma_server.cache import SingleFlight
from luma_server.catalog import Catalog
from luma_server.place import Root
from luma_server.settings import Settings

_log = logging.getLogger(__name__)

StatsKey = tuple[str, ...]
"""What is measured, digests of the manifests, and what else the result depends on."""

_STATS = "stats"
_MAX_STATS_BYTES = 256 << 20
_HASH_BYTES = 64


class ReplacedError(Exception):
    """A checkpoint was replaced by another one while it was read."""


class Service:
    """Statistics of one server: computed in threads of their own, kept in memory and in the store.

    Args:
        settings: what to serve.
        catalog: what there is; opened from the settings by default.
    """

    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        self.catalog = catalog or Catalog(Root(settings.root), settings.list_cache_seconds)
        self._kept = self.catalog.root.private(_STATS)
        self._stats: SingleFlight[StatsKey] = SingleFlight(settings.stats_cache_bytes)
        self._executor = ThreadPoolExecutor(settings.stats_workers, "luma-stats")
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop computing: what is running ends after the parameter it is at."""
        self._closing.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.catalog.close()

    def digest(self, run: str, step: str) -> str:
        """Return the digest of a checkpoint's manifest; blocks.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        known = self.catalog.summary(run, step).info.digest
        return known or self.catalog.open(run, step).manifest.digest

    async def stats(self, run: str, step: str, pattern: str | None, digest: str) -> bytes:
        """Return the statistics of a checkpoint as JSON, from memory or the store if kept there.

        Raises:
            ReplacedError: the checkpoint's digest is not ``digest`` any more.
            CheckpointError: it cannot be read.
            ServiceError: the server is about to stop.
        """
        key = ("stats", digest) if pattern is None else ("stats", digest, pattern)
        return await self.once(key, lambda: self._compute(run, step, pattern, digest))

    async def once(self, key: StatsKey, compute: Callable[[], bytes]) -> bytes:
        """Return what ``compute`` returns, from memory where it is kept, computed once at a time.

        Args:
            key: tells results apart.
            compute: called in one of the threads.

        Raises:
            ServiceError: the server is about to stop.
        """

        async def work() -> bytes:
            if self._closing.is_set():
                raise _stopping()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, compute)

        return await self._stats.get(key, work)

    def _compute(self, run: str, step: str, pattern: str | None, digest: str) -> bytes:
        if pattern is None and (known := self._load(digest)) is not None:
            return known
        with self.catalog.open(run, step) as opened:
            if opened.manifest.digest != digest:
                raise ReplacedError
            try:
                report = stats.compute(opened, pattern=pattern, progress=self.stop_if_closing)
            except CorruptCheckpointError as error:
                if self.digest(run, step) != digest:
                    raise ReplacedError from error
                raise
        body = stats_adapter().dump_json(report)
        if pattern is None:
            self._save(digest, body)
        return body

    def stop_if_closing(self, done: int, total: int) -> None:
        """End a computation between two parameters once the server stops.

        Raises:
            ServiceError: it does.
        """
        if self._closing.is_set() and done < total:
            raise _stopping()

    def _load(self, digest: str) -> bytes | None:
        try:
            found = self._kept.read_range(_kept_name(digest), 0, _MAX_STATS_BYTES)
        except OSError:
            return None
        body = found[_HASH_BYTES:]
        return body if hashlib.sha256(body).hexdigest().encode() == found[:_HASH_BYTES] else None

    def _save(self, digest: str, body: bytes) -> None:
        try:
            with storage_errors(_STATS), self._kept.write(_kept_name(digest)) as out:
                out.write(hashlib.sha256(body).hexdigest().encode())
                out.write(body)
                out.commit()
        except StorageError as error:
            # A root that may only be read is served all the same.
            _log.warning("statistics were not kept: %s", self.catalog.root.hide(error.message))

    def forget(self, digest: str | None) -> None:
        """Remove kept statistics of a checkpoint that is gone; blocks."""
        if digest is not None:
            with storage_errors(_STATS):
                self._kept.delete(_kept_name(digest))


def stats_etag(digest: str, *what: str | None) -> str:
    """Return the entity tag of statistics: other software may count other things."""
    text = "\n".join([digest, __version__, *("" if one is None else f"={one}" for one in what)])
    return f'"{hashlib.sha256(text.encode()).hexdigest()}"'


def _kept_name(digest: str) -> str:
    return f"{digest}.{hashlib.sha256(__version__.encode()).hexdigest()[:8]}.json"


def _stopping() -> ServiceError:
    return ServiceError("the server is stopping.", hint="Ask again once it is back.")


@lru_cache(maxsize=1)
def stats_adapter() -> TypeAdapter[CheckpointStats]:
    """Return what turns statistics into JSON and back."""
    return TypeAdapter(CheckpointStats)
