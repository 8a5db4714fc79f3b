"""The HTTP interface, version 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from luma_core import __version__
from luma_core.checkpoint import Manifest
from luma_core.errors import ServiceError
from luma_core.stats import CheckpointStats
from luma_core.wire import CheckpointList, Health, Problem
from luma_server.service import ReplacedError, Service, stats_etag

MAX_PATTERN_CHARACTERS = 512
"""Longer patterns are refused: a parameter's name is shorter."""

_ATTEMPTS = 3
"""Tries at a checkpoint that is replaced again and again while it is read."""

_PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "description": "Any error"}
}
_CONDITIONAL: dict[int | str, dict[str, Any]] = {
    **_PROBLEM,
    304: {"description": "Unchanged since the answer whose ETag was sent in If-None-Match"},
}

router = APIRouter(responses=_PROBLEM)


@dataclass(frozen=True)
class ManifestDocument:
    """The content of ``luma.json``, byte for byte.

    Attributes:
        checksum: ``sha256:<hex>`` of the manifest's canonical JSON.
        manifest: the manifest.
    """

    checksum: str
    manifest: Manifest


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(_service)]


@router.get("/healthz", summary="Whether the server answers")
async def healthz() -> Health:
    """Answer as soon as the server does; says nothing about the checkpoints."""
    return Health(status="ok", version=__version__)


@router.get("/v1/checkpoints", summary="All committed checkpoints")
def list_checkpoints(service: ServiceDependency) -> CheckpointList:
    """List the folders under the root that hold a manifest, damaged ones with an `error`."""
    return CheckpointList(tuple(service.catalog.list()))


@router.get(
    "/v1/checkpoints/{run}/{step}",
    summary="The manifest of a checkpoint",
    response_model=ManifestDocument,
    responses=_CONDITIONAL,
)
def get_manifest(request: Request, service: ServiceDependency, run: str, step: str) -> Response:
    """Answer with `luma.json` byte for byte, so that its checksum can be checked."""
    digest = service.digest(run, step)
    if _is_known(request, f'"{digest}"'):
        return _not_modified(f'"{digest}"')
    manifest = service.catalog.open(run, step).manifest
    return _json(manifest.to_bytes(), f'"{manifest.digest}"')


@router.get(
    "/v1/checkpoints/{run}/{step}/stats",
    summary="Statistics of the optimizer state in a checkpoint",
    response_model=CheckpointStats,
    responses=_CONDITIONAL,
)
async def get_stats(
    request: Request,
    service: ServiceDependency,
    run: str,
    step: str,
    param: Annotated[
        str | None,
        Query(
            max_length=MAX_PATTERN_CHARACTERS,
            description="Shell pattern that chooses parameters by name; all without it",
        ),
    ] = None,
) -> Response:
    """Measure moments, scales, codes and updates, per parameter and in total."""
    for _ in range(_ATTEMPTS):
        digest = await run_in_threadpool(service.digest, run, step)
        etag = stats_etag(digest, param)
        if _is_known(request, etag):
            return _not_modified(etag)
        try:
            return _json(await service.stats(run, step, param, digest), etag)
        except ReplacedError:
            continue
    raise ServiceError(
        f"the checkpoint {run}/{step} is being replaced.", hint="Ask again in a moment."
    )


def _is_known(request: Request, etag: str) -> bool:
    given = ",".join(request.headers.getlist("If-None-Match")).split(",")
    tags = {tag.strip().removeprefix("W/") for tag in given}
    return "*" in tags or etag in tags


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers=_headers(etag))


def _json(body: bytes, etag: str) -> Response:
    return Response(body, media_type="application/json", headers=_headers(etag))


def _headers(etag: str) -> dict[str, str]:
    # A checkpoint may be replaced under the same name, so what is kept must be asked for again.
    return {"ETag": etag, "Cache-Control": "no-cache"}
