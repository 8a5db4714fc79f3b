"""The application: routes, problems and the life of what is behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from fastapi import FastAPI

from luma_core import __version__
from luma_server.application_state import ApplicationState
from luma_server.http.middleware import RequestMiddleware
from luma_server.http.problems import document_problems, install_problems
from luma_server.page import router as page_router
from luma_server.routes import router
from luma_server.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Return the ASGI application that serves ``settings.root``.

    ``/openapi.json`` describes it. There are no documentation pages, as FastAPI's load scripts
    from other hosts.

    Raises:
        ConfigurationError: the root or the file of tokens cannot be used.
        StorageError: no store handles that kind of root.
    """
    application = ApplicationState.of(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(application.sweep_forever())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])
            await application.close()

    app = FastAPI(
        title="LUMA",
        summary="Checkpoints of compressed optimizer state: kept, and what is inside.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        # A redirect would repeat a host name that the client made up.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.application = application
    app.state.service = application.service
    app.state.authority = application.authority
    app.include_router(router)
    app.include_router(page_router)
    app.add_middleware(RequestMiddleware, settings=settings, metrics=application.metrics)
    install_problems(app, application.catalog.root.hide)
    describe = app.openapi

    @lru_cache(maxsize=1)
    def openapi() -> dict[str, Any]:
        return document_problems(describe())

    app.openapi = openapi  # type: ignore[method-assign]
    return app
