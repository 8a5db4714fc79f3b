"""The files of checkpoints, whole and in ranges."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from luma_core.checkpoint.format import MANIFEST_NAME
from luma_core.checkpoint.steps import STEP_NAME
from luma_core.checkpoint.storage import check_name
from luma_core.checkpoint.storage.store import storage_errors
from luma_core.wire import FileInfo, FileList
from luma_server.http.access import Reader
from luma_server.http.problems import ApiError
from luma_server.http.transfer import file_response
from luma_server.routes.common import CONDITIONAL, Run, Server, Step
from luma_server.uploads.commit import MAX_MARK_BYTES

router = APIRouter()

_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}


@router.get("/v1/checkpoints/{run}/{step}/files", summary="What files a checkpoint has")
def list_files(server: Server, _: Reader, run: Run, step: Step) -> FileList:
    """List the files that the manifest names, with size and SHA-256."""
    files = server.catalog.files(run, step)
    return FileList(tuple(FileInfo(file.name, file.bytes, file.sha256) for file in files))


@router.head("/v1/checkpoints/{run}/{step}/files/{name}", include_in_schema=False)
@router.get(
    "/v1/checkpoints/{run}/{step}/files/{name}",
    summary="One file of a checkpoint",
    response_class=Response,
    responses={
        200: _BINARY,
        206: {**_BINARY, "description": "The range that was asked for"},
        416: {"description": "The range begins behind the end"},
        **CONDITIONAL,
    },
)
def get_file(
    request: Request,
    server: Server,
    _: Reader,
    run: Run,
    step: Step,
    name: Annotated[str, Path(description="Name of the file")],
) -> Response:
    """Answer with a file, or one range of it; the ETag is the SHA-256 of the whole."""
    check_name(name)
    store = server.catalog.root.checkpoint(run, step)
    if name == MANIFEST_NAME:
        body, digest = server.catalog.manifest_bytes(run, step)
        size, etag, kind = len(body), digest, "application/json"
    elif name == STEP_NAME and (mark := _mark(server, run, step)):
        size, etag, kind = len(mark), hashlib.sha256(mark).hexdigest(), "application/json"
    else:
        files = server.catalog.files(run, step)
        found = next((file for file in files if file.name == name), None)
        if found is None:
            raise ApiError(
                "file_not_found",
                f"{run}/{step} has no file {name!r}.",
                hint=f"GET /v1/checkpoints/{run}/{step}/files lists those it has.",
            )
        server.catalog.check_inside(run, step, [name])
        size, etag, kind = found.bytes, found.sha256, "application/octet-stream"
    return file_response(request, store, name, size_bytes=size, etag=f'"{etag}"', media_type=kind)


def _mark(server: Server, run: str, step: str) -> bytes:
    """Return what a `CheckpointManager` wrote beside a checkpoint; empty where none did."""
    server.catalog.files(run, step)
    server.catalog.check_inside(run, step, [STEP_NAME])
    with storage_errors(f"{run}/{step}"):
        try:
            store = server.catalog.root.checkpoint(run, step)
            return store.read_range(STEP_NAME, 0, MAX_MARK_BYTES)
        except FileNotFoundError:
            return b""
