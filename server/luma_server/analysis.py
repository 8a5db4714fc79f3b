"""What is derived from statistics: by module, over the steps of a run, between two checkpoints."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import lru_cache

from anyio.to_thread import run_sync
from pydantic import TypeAdapter

from luma_core import stats
from luma_core.errors import LumaError, ServiceError
from luma_core.stats import ModuleList, StateDiff, by_module
from luma_core.wire import CheckpointInfo
from luma_core.wire_stats import Comparison, Series, SeriesPoint
from luma_server.catalog.cache import SingleFlight
from luma_server.catalog.place import not_found
from luma_server.numbers import Numbers, Wanted
from luma_server.service import ReplacedError, Service, stats_adapter

_NUMBERS_BYTES = 64 << 20
"""Bound on the numbers of checkpoints that are kept in memory for series."""


class Analysis:
    """Derives from the statistics of a service; belongs to one event loop.

    Args:
        service: computes and keeps them.
        series_seconds: how long a series waits for what is not known yet.
    """

    def __init__(self, service: Service, series_seconds: float) -> None:
        self._service = service
        self._series_seconds = series_seconds
        self._numbers: SingleFlight[str, Numbers] = SingleFlight(
            _NUMBERS_BYTES, lambda numbers: numbers.size_bytes
        )
        self._running: set[asyncio.Task[SeriesPoint]] = set()

    async def modules(self, run: str, step: str, digest: str, depth: int) -> bytes:
        """Return statistics by module as JSON.

        Raises:
            ReplacedError: the checkpoint's digest is not ``digest`` any more.
            CheckpointError: it cannot be read.
            ServiceError: the server is about to stop.
        """
        body = await self._service.stats(run, step, None, digest)

        def compute() -> bytes:
            return _modules().dump_json(by_module(stats_adapter().validate_json(body), depth))

        return await self._service.once(("modules", digest, str(depth)), compute)

    async def series(self, run: str, infos: Sequence[CheckpointInfo], wanted: Wanted) -> Series:
        """Return one number of each checkpoint; those not known in time are computed meanwhile.

        Raises:
            CheckpointNotFoundError: there are no checkpoints.
        """
        if not infos:
            raise not_found(run, "*")
        tasks = [asyncio.create_task(self._point(info, wanted)) for info in infos]
        self._running.update(tasks)
        for task in tasks:
            task.add_done_callback(self._running.discard)
        await asyncio.wait(tasks, timeout=self._series_seconds)
        points = (
            task.result()
            if task.done()
            else SeriesPoint(info.step, info.optimizer_step, None, "pending")
            for info, task in zip(infos, tasks, strict=True)
        )
        return Series(run, wanted.metric, tuple(points))

    async def _point(self, info: CheckpointInfo, wanted: Wanted) -> SeriesPoint:
        digest = info.digest
        if digest is None:
            return SeriesPoint(info.step, None, None, "failed")
        try:
            numbers = await self._numbers.get(digest, lambda: self._read(info, digest))
        except ServiceError:
            return SeriesPoint(info.step, info.optimizer_step, None, "pending")
        except (LumaError, OSError, ReplacedError):
            return SeriesPoint(info.step, info.optimizer_step, None, "failed")
        return SeriesPoint(info.step, info.optimizer_step, numbers.get(wanted), "done")

    async def _read(self, info: CheckpointInfo, digest: str) -> Numbers:
        body = await self._service.stats(info.run, info.step, None, digest)
        return await run_sync(lambda: Numbers(stats_adapter().validate_json(body)))

    async def compare(
        self, a: tuple[str, str, str], b: tuple[str, str, str], pattern: str | None
    ) -> bytes:
        """Return the comparison of two checkpoints as JSON.

        Args:
            a: run, step and digest of the first.
            b: those of the second.
            pattern: shell pattern that chooses parameters; ``None`` for all.

        Raises:
            ReplacedError: one of them has another digest now.
            CheckpointError: one cannot be read.
            ServiceError: the server is about to stop.
        """
        bodies = [await self._service.stats(run, step, pattern, d) for run, step, d in (a, b)]

        def compute() -> bytes:
            difference = self._difference(a, b, pattern)
            totals = [stats_adapter().validate_json(body).total.update for body in bodies]
            cosine = None
            if all(one.elements == difference.total.update.elements for one in totals):
                cosine = _cosine(totals[0].rms, totals[1].rms, difference)
            told = Comparison(f"{a[0]}/{a[1]}", f"{b[0]}/{b[1]}", cosine, difference)
            return _comparison().dump_json(told)

        key = ("compare", *a, *b) if pattern is None else ("compare", *a, *b, pattern)
        return await self._service.once(key, compute)

    def _difference(
        self, a: tuple[str, str, str], b: tuple[str, str, str], pattern: str | None
    ) -> StateDiff:
        catalog = self._service.catalog
        with catalog.open(*a[:2]) as first, catalog.open(*b[:2]) as second:
            if (first.manifest.digest, second.manifest.digest) != (a[2], b[2]):
                raise ReplacedError
            return stats.diff(
                first, second, pattern=pattern, progress=self._service.stop_if_closing
            )


def _cosine(a: float | None, b: float | None, difference: StateDiff) -> float | None:
    """Return the cosine by the law of cosines, from the rms of both and of their difference."""
    error = difference.total.update
    if not a or not b or error.relative_rms is None or error.nonfinite:
        return None
    apart = error.relative_rms * a
    cosine = (a * a + b * b - apart * apart) / (2 * a * b)
    return min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else None


def spread(infos: Sequence[CheckpointInfo], points: int) -> list[CheckpointInfo]:
    """Return at most ``points`` of them, evenly spaced, the first and the last among them."""
    if len(infos) <= points:
        return list(infos)
    if points == 1:
        return [infos[-1]]
    return [infos[round(i * (len(infos) - 1) / (points - 1))] for i in range(points)]


@lru_cache(maxsize=1)
def _modules() -> TypeAdapter[ModuleList]:
    return TypeAdapter(ModuleList)


@lru_cache(maxsize=1)
def _comparison() -> TypeAdapter[Comparison]:
    return TypeAdapter(Comparison)
