"""The application: routes, problems and the life of what is behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from fastapi import FastAPI

from luma_core import __version__
from luma_server.middleware import RequestMiddleware
from luma_server.problems import document_problems, install_problems
from luma_server.routes import router
from luma_server.service import Service
from luma_server.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Return the ASGI application that serves ``settings.root``.

    ``/openapi.json`` describes it. There are no documentation pages, as FastAPI's load scripts
    from other hosts.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="LUMA",
        summary="What is inside checkpoints of compressed optimizer state.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        # A redirect would repeat a host name that the client made up.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.add_middleware(RequestMiddleware)
    install_problems(app, service.catalog.hide_root)
    describe = app.openapi

    @lru_cache(maxsize=1)
    def openapi() -> dict[str, Any]:
        return document_problems(describe())

    app.openapi = openapi  # type: ignore[method-assign]
    return app
