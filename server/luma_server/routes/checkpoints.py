"""Checkpoints: listed, looked at, deleted, pinned and labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from luma_core.checkpoint import Manifest
from luma_core.wire import CheckpointInfo, CheckpointPage, RunList
from luma_server.http.access import Reader, Writer
from luma_server.http.query import MAX_PAGE, Filters, list_page, list_runs
from luma_server.http.transfer import is_known, not_modified
from luma_server.routes.common import (
    CONDITIONAL,
    MAX_NAME_CHARACTERS,
    Run,
    Server,
    Step,
    audit,
    json_response,
)
from luma_server.uploads.commit import delete_checkpoint

MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
_MAX_STEP = (1 << 63) - 1

router = APIRouter()

_Text = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]
_Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=100)]
_Number = Annotated[int | None, Query(ge=0, le=_MAX_STEP)]


class Labels(BaseModel):
    """Labels by key."""

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[dict[_Key, _Text], Field(max_length=MAX_LABELS)]


@dataclass(frozen=True)
class ManifestDocument:
    """The content of ``luma.json``, byte for byte.

    Attributes:
        checksum: ``sha256:<hex>`` of the manifest's canonical JSON.
        manifest: the manifest.
    """

    checksum: str
    manifest: Manifest


@router.get("/v1/runs", summary="All runs that have checkpoints")
def get_runs(server: Server, principal: Reader) -> RunList:
    """List the folders under the root that hold checkpoints."""
    return list_runs(server.catalog, principal.may_see)


@router.get("/v1/checkpoints", summary="Committed checkpoints, page by page")
def list_checkpoints(
    server: Server,
    principal: Reader,
    run: Annotated[str | None, Query(max_length=MAX_NAME_CHARACTERS)] = None,
    prefix: Annotated[
        str, Query(max_length=2 * MAX_NAME_CHARACTERS + 1, description="Of `run/step`")
    ] = "",
    label: Annotated[
        tuple[str, ...],
        Query(max_length=16, description="`key` or `key:value`; all must be there"),
    ] = (),
    pinned: bool | None = None,
    optimizer: Annotated[str | None, Query(max_length=100)] = None,
    min_step: _Number = None,
    max_step: _Number = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    cursor: Annotated[
        str | None, Query(max_length=1000, description="`next_cursor` of the page before")
    ] = None,
) -> CheckpointPage:
    """List the folders under the root that hold a manifest, damaged ones with an `error`."""
    filters = Filters(
        run=run,
        prefix=prefix,
        labels=label,
        pinned=pinned,
        optimizer=optimizer,
        min_step=min_step,
        max_step=max_step,
    )
    with server.metrics.store("list"):
        return list_page(
            server.catalog, filters, allowed=principal.may_see, limit=limit, cursor=cursor
        )


@router.head("/v1/checkpoints/{run}/{step}", include_in_schema=False)
@router.get(
    "/v1/checkpoints/{run}/{step}",
    summary="The manifest of a checkpoint",
    response_model=ManifestDocument,
    responses=CONDITIONAL,
)
def get_manifest(request: Request, server: Server, _: Reader, run: Run, step: Step) -> Response:
    """Answer with `luma.json` byte for byte, so that its checksum can be checked."""
    digest = server.service.digest(run, step)
    if is_known(request, f'"{digest}"'):
        return not_modified(f'"{digest}"')
    body, digest = server.catalog.manifest_bytes(run, step)
    return json_response(body, f'"{digest}"')


@router.get("/v1/checkpoints/{run}/{step}/info", summary="One entry of the listing")
def get_info(server: Server, _: Reader, run: Run, step: Step) -> CheckpointInfo:
    """Answer with what the listing says of a checkpoint."""
    return server.catalog.info(run, step)


@router.delete("/v1/checkpoints/{run}/{step}", summary="Remove a checkpoint", status_code=204)
def delete(
    request: Request,
    server: Server,
    principal: Writer,
    run: Run,
    step: Step,
    if_match: Annotated[
        str | None, Header(max_length=100, description="ETag of the manifest that is meant")
    ] = None,
) -> None:
    """Remove the manifest, and then the files it names; pinned checkpoints are refused."""
    digest = server.catalog.summary(run, step).info.digest
    expected = None if if_match in (None, "*") else str(if_match).strip().strip('"')
    with server.metrics.store("delete"):
        delete_checkpoint(server.catalog, run, step, expected=expected)
    audit(request, principal, "delete", run=run, step=step, digest=digest)
    server.service.forget(digest)


@router.put("/v1/checkpoints/{run}/{step}/pin", summary="Pin a checkpoint", status_code=204)
def pin(request: Request, server: Server, principal: Writer, run: Run, step: Step) -> None:
    """Refuse to delete or replace the checkpoint until it is unpinned."""
    _annotate_pin(request, server, principal, run, step, pinned=True)


@router.delete("/v1/checkpoints/{run}/{step}/pin", summary="Unpin a checkpoint", status_code=204)
def unpin(request: Request, server: Server, principal: Writer, run: Run, step: Step) -> None:
    """Let the checkpoint be deleted and replaced again."""
    _annotate_pin(request, server, principal, run, step, pinned=False)


def _annotate_pin(
    request: Request, server: Server, principal: Writer, run: str, step: str, *, pinned: bool
) -> None:
    server.catalog.summary(run, step)
    server.catalog.annotations.pin(run, step, pinned)
    audit(request, principal, "pin" if pinned else "unpin", run=run, step=step)


@router.put("/v1/checkpoints/{run}/{step}/labels", summary="Replace the labels of a checkpoint")
def put_labels(
    request: Request, server: Server, principal: Writer, run: Run, step: Step, body: Labels
) -> CheckpointInfo:
    """Keep these labels beside the checkpoint, and no others."""
    server.catalog.summary(run, step)
    server.catalog.annotations.label(run, step, body.labels)
    audit(request, principal, "label", run=run, step=step, labels=body.labels)
    return server.catalog.info(run, step)
