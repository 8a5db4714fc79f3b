"""What the routes do, apart from HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from pydantic import TypeAdapter

from luma_core import __version__, stats
from luma_core.errors import CheckpointReplacedError, CorruptCheckpointError, ServiceError
from luma_core.stats import STATS_VERSION, CheckpointStats
from luma_server.catalog.cache import SingleFlight
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.place import Root
from luma_server.settings import Settings
from luma_server.statistics_cache import MeasuredElsewhereError, StatisticsCache

StatsKey = tuple[str, ...]
"""What is measured, digests of the manifests, and what else the result depends on."""

_ELSEWHERE_SECONDS = 0.25
"""Between two looks at what another server computes."""


class ReplacedError(Exception):
    """A checkpoint was replaced by another one while it was read."""


class Service:
    """Statistics of one server: computed in threads of their own, and cached in memory and store.

    Args:
        settings: what to serve.
        catalog: what there is; opened from the settings by default.
        measured: called, in any thread, when statistics were computed and not only read.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog | None = None,
        measured: Callable[[], None] = lambda: None,
    ) -> None:
        self.catalog = catalog or Catalog(Root(settings.root), settings.list_cache_seconds)
        self._statistics = StatisticsCache(self.catalog.root)
        self._stats: SingleFlight[StatsKey, bytes] = SingleFlight(settings.stats_cache_bytes, len)
        self._executor = ThreadPoolExecutor(settings.stats_workers, "luma-stats")
        self._closing = threading.Event()
        self._measured = measured

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
        """Return the statistics of a checkpoint as JSON, from a cache or computed.

        Raises:
            ReplacedError: the checkpoint's digest is not ``digest`` any more.
            CheckpointError: it cannot be read.
            ServiceError: the server is about to stop.
        """
        if pattern is not None:
            key = ("stats", digest, pattern)
            return await self.once(key, lambda: self._measure(run, step, pattern, digest))

        async def work() -> bytes:
            while True:
                try:
                    return await self._in_thread(lambda: self._compute(run, step, digest))
                except MeasuredElsewhereError:
                    await asyncio.sleep(_ELSEWHERE_SECONDS)

        return await self._stats.get(("stats", digest), work)

    async def once(self, key: StatsKey, compute: Callable[[], bytes]) -> bytes:
        """Return what ``compute`` returns, from the cache in memory, computed once at a time.

        Args:
            key: tells results apart.
            compute: called in one of the threads.

        Raises:
            ServiceError: the server is about to stop.
        """
        return await self._stats.get(key, lambda: self._in_thread(compute))

    async def _in_thread(self, compute: Callable[[], bytes]) -> bytes:
        if self._closing.is_set():
            raise _stopping()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, compute)

    def _compute(self, run: str, step: str, digest: str) -> bytes:
        known = self._statistics.load(digest)
        if known is not None:
            return known
        with self._statistics.computing(digest):
            # Another server may have been at it, and have ended since.
            known = self._statistics.load(digest)
            if known is None:
                known = self._measure(run, step, None, digest)
                self._statistics.save(digest, known)
        return known

    def _measure(self, run: str, step: str, pattern: str | None, digest: str) -> bytes:
        with self.catalog.open(run, step) as opened:
            if opened.manifest.digest != digest:
                raise ReplacedError
            try:
                report = stats.compute(opened, pattern=pattern, progress=self.stop_if_closing)
            except (CheckpointReplacedError, CorruptCheckpointError) as error:
                if self.digest(run, step) != digest:
                    raise ReplacedError from error
                raise
        self._measured()
        return stats_adapter().dump_json(report)

    def stop_if_closing(self, done: int, total: int) -> None:
        """End a computation between two parameters once the server stops.

        Raises:
            ServiceError: it does.
        """
        if self._closing.is_set() and done < total:
            raise _stopping()

    def forget(self, digest: str | None) -> None:
        """Remove cached statistics of a checkpoint that is gone; blocks."""
        if digest is not None:
            self._statistics.forget(digest)

    def sweep(self) -> None:
        """Remove cached statistics of checkpoints that are gone; blocks.

        Raises:
            StorageError: the store failed.
        """
        self._statistics.sweep(self.catalog.digests)


def stats_etag(digest: str, *what: str | None) -> str:
    """Return the entity tag of statistics: other software may count other things."""
    software = f"{__version__} {STATS_VERSION}"
    text = "\n".join([digest, software, *("" if one is None else f"={one}" for one in what)])
    return f'"{hashlib.sha256(text.encode()).hexdigest()}"'


def _stopping() -> ServiceError:
    return ServiceError("the server is stopping.", hint="Ask again once it is back.")


@lru_cache(maxsize=1)
def stats_adapter() -> TypeAdapter[CheckpointStats]:
    """Return what turns statistics into JSON and back."""
    return TypeAdapter(CheckpointStats)
