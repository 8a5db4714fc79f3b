"""Whether the server works, and what it counts."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from luma_core import __version__
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.errors import StorageError
from luma_core.wire import Health
from luma_server.http.access import Reader
from luma_server.http.problems import ApiError
from luma_server.metrics import CONTENT_TYPE
from luma_server.routes.common import Server

router = APIRouter()


@router.get("/healthz", summary="Whether the server answers")
async def healthz() -> Health:
    """Answer as soon as the server does; says nothing about the checkpoints."""
    return Health(status="ok", version=__version__)


@router.get("/readyz", summary="Whether the store can be reached")
async def readyz(server: Server) -> Health:
    """Look at the root, and answer 503 where that fails."""
    root = server.catalog.root

    def look() -> None:
        if root.folder is not None and not root.folder.is_dir():
            raise StorageError("the root is gone.")
        with storage_errors("the root"):
            root.private("ready").version("probe.json")

    try:
        with server.metrics.store("look"):
            await run_sync(look)
    except StorageError as error:
        raise ApiError(
            "not_ready", "the store cannot be reached.", headers={"Retry-After": "5"}
        ) from error
    return Health(status="ok", version=__version__)


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
def metrics(server: Server, _: Reader) -> Response:
    """Count requests, bytes, time at the store, uploads and jobs of this process."""
    return Response(server.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
