"""What the routes do, apart from HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from pydantic import TypeAdapter

from luma_core import __version__, stats
from luma_core.errors import CorruptCheckpointError, ServiceError
from luma_core.stats import CheckpointStats
from luma_server.cache import SingleFlight
from luma_server.catalog import Catalog
from luma_server.settings import Settings

StatsKey = tuple[str, str | None]
"""Digest of a manifest, and the pattern that chooses parameters."""


class ReplacedError(Exception):
    """A checkpoint was replaced by another one while it was read."""


class Service:
    """The state of one server: its catalog, and statistics computed in threads of their own."""

    def __init__(self, settings: Settings) -> None:
        self.catalog = Catalog(settings.root)
        self._stats: SingleFlight[StatsKey] = SingleFlight(settings.stats_cache_bytes)
        self._executor = ThreadPoolExecutor(settings.stats_workers, "luma-stats")
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop computing: what is running ends after the parameter it is at."""
        self._closing.set()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def digest(self, run: str, step: str) -> str:
        """Return the digest of a checkpoint's manifest; blocks.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        known = self.catalog.info(run, step).digest
        return known or self.catalog.open(run, step).manifest.digest

    async def stats(self, run: str, step: str, pattern: str | None, digest: str) -> bytes:
        """Return the statistics of a checkpoint as JSON, from memory where they are kept.

        Raises:
            ReplacedError: the checkpoint's digest is not ``digest`` any more.
            CheckpointError: it cannot be read.
            ServiceError: the server is about to stop.
        """

        async def compute() -> bytes:
            if self._closing.is_set():
                raise _stopping()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._executor, self._compute, run, step, pattern, digest
            )

        return await self._stats.get((digest, pattern), compute)

    def _compute(self, run: str, step: str, pattern: str | None, digest: str) -> bytes:
        with self.catalog.open(run, step) as opened:
            if opened.manifest.digest != digest:
                raise ReplacedError
            try:
                report = stats.compute(opened, pattern=pattern, progress=self._stop_if_closing)
            except CorruptCheckpointError as error:
                if self.digest(run, step) != digest:
                    raise ReplacedError from error
                raise
        return _stats_adapter().dump_json(report)

    def _stop_if_closing(self, done: int, total: int) -> None:
        if self._closing.is_set() and done < total:
            raise _stopping()


def stats_etag(digest: str, pattern: str | None) -> str:
    """Return the entity tag of statistics: other software may count other things."""
    text = f"{digest}\n{__version__}\n{'' if pattern is None else f'={pattern}'}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()}"'


def _stopping() -> ServiceError:
    return ServiceError("the server is stopping.", hint="Ask again once it is back.")


@lru_cache(maxsize=1)
def _stats_adapter() -> TypeAdapter[CheckpointStats]:
    return TypeAdapter(CheckpointStats)
