"""The state of one application, and its life."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass

from anyio.to_thread import run_sync

from luma_core.errors import LumaError
from luma_server.analysis import Analysis
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.place import Root
from luma_server.http.access import Authority
from luma_server.jobs.queue import Jobs
from luma_server.metrics import Metrics
from luma_server.service import Service
from luma_server.settings import Settings
from luma_server.uploads.receive import Receiver
from luma_server.uploads.sessions import Sessions

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 300.0
"""Between two looks for uploads and jobs whose time is over."""

TIDY_SWEEPS = 12
"""At every so many of them caches are compared with all checkpoints, which takes longer."""


@dataclass(frozen=True)
class ApplicationState:
    """What all routes work with: one object, made when the server starts."""

    settings: Settings
    catalog: Catalog
    authority: Authority
    metrics: Metrics
    service: Service
    analysis: Analysis
    sessions: Sessions
    receiver: Receiver
    jobs: Jobs

    @staticmethod
    def of(settings: Settings) -> ApplicationState:
        """Make the state of an application.

        Raises:
            ConfigurationError: the root or the file of tokens cannot be used.
            StorageError: no store handles that kind of root.
        """
        catalog = Catalog(Root(settings.root), settings.list_cache_seconds)
        authority = Authority(settings)
        metrics = Metrics()
        service = Service(settings, catalog, metrics.measured)
        sessions = Sessions(catalog, settings)
        jobs = Jobs(catalog, settings)
        metrics.gauge(
            "luma_uploads",
            "Uploads that are open.",
            "state",
            lambda: {"open": sessions.count_open()},
        )
        metrics.gauge("luma_jobs", "Jobs by state.", "state", jobs.count)
        return ApplicationState(
            settings=settings,
            catalog=catalog,
            authority=authority,
            metrics=metrics,
            service=service,
            analysis=Analysis(service, settings.series_seconds),
            sessions=sessions,
            receiver=Receiver(sessions, authority, settings),
            jobs=jobs,
        )

    async def sweep_forever(self) -> None:
        """Collect what nobody wants any more, now and then."""
        for number in itertools.count():
            # Not at once: a server that starts has others to answer.
            await run_sync(self.sweep, number % TIDY_SWEEPS == 1)
            await asyncio.sleep(SWEEP_SECONDS)

    def sweep(self, tidy: bool = True) -> None:
        """Collect what nobody wants any more; blocks.

        Args:
            tidy: whether to look also for what belongs to checkpoints that are gone.
        """
        sweeps = [self.sessions.sweep, self.jobs.sweep]
        if tidy:
            sweeps += [self.service.sweep, self.catalog.sweep]
        for sweep in sweeps:
            try:
                sweep()
            except (LumaError, OSError) as error:
                _log.warning("could not clean up: %s", self.catalog.root.hide(str(error)))

    async def close(self) -> None:
        """End what is at work."""
        await run_sync(self.service.close)
        await self.jobs.close()
