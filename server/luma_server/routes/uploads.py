"""Upload sessions."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict

from luma_core.wire import Committed, UploadList, UploadSession
from luma_server.http.access import Writer
from luma_server.routes.common import Server, audit
from luma_server.uploads.receive import MAX_PART_NUMBER

router = APIRouter()

_Id = Annotated[str, Path(description="Id of the upload")]


class NewUpload(BaseModel):
    """A checkpoint to be sent.

    Attributes:
        run: where it shall be.
        step: likewise.
        manifest: content of ``luma.json``; null where the commit brings it.
        overwrite: whether it may replace one.
        expected: digest of the one that it may replace; any where null.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    step: str
    manifest: str | None = None
    overwrite: bool = False
    expected: str | None = None


class Commit(BaseModel):
    """The end of an upload.

    Attributes:
        manifest: content of ``luma.json`` where the upload was begun without.
    """

    model_config = ConfigDict(extra="forbid")

    manifest: str | None = None


@router.post("/v1/uploads", summary="Begin to send a checkpoint", status_code=201)
def create_upload(
    request: Request, server: Server, principal: Writer, body: NewUpload
) -> UploadSession:
    """Answer which files are wanted; those the server has already are not."""
    principal.check_run(body.run)
    session = server.sessions.create(
        principal,
        body.run,
        body.step,
        body.manifest,
        overwrite=body.overwrite,
        expected=body.expected,
    )
    audit(request, principal, "upload", id=session.id, run=body.run, step=body.step)
    return session


@router.get("/v1/uploads", summary="Open uploads of the token")
def list_uploads(server: Server, principal: Writer) -> UploadList:
    """List what was begun and is not committed; `admin` sees those of all."""
    return UploadList(tuple(server.sessions.list(principal)))


@router.get("/v1/uploads/{id}", summary="What of an upload has arrived")
def get_upload(server: Server, principal: Writer, id: _Id) -> UploadSession:
    """Tell which parts have arrived, so that the others can be sent."""
    return server.sessions.describe(server.sessions.get(principal, id))


@router.put(
    "/v1/uploads/{id}/files/{name}/parts/{number}",
    summary="Send a part of a file",
    status_code=204,
    openapi_extra={
        "parameters": [
            {
                "name": "Content-Digest",
                "in": "header",
                "required": True,
                "description": "`sha-256=:BASE64:` of the body (RFC 9530)",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        },
    },
)
async def put_part(
    request: Request,
    server: Server,
    principal: Writer,
    id: _Id,
    name: Annotated[str, Path(description="Name of the file")],
    number: Annotated[int, Path(ge=1, le=MAX_PART_NUMBER, description="From 1")],
) -> None:
    """Keep a part; one that arrived before with the same digest is not stored again."""
    record = await run_sync(lambda: server.sessions.get(principal, id, fresh=False))
    principal.check_run(record.run)
    await server.receiver.receive(request, principal, record, name, number)


@router.post("/v1/uploads/{id}/commit", summary="Make the checkpoint visible", status_code=201)
def commit_upload(
    request: Request, server: Server, principal: Writer, id: _Id, body: Commit | None = None
) -> Committed:
    """Check that all files are whole, and publish them and then the manifest; repeatable."""
    principal.check_run(server.sessions.get(principal, id).run)
    with server.metrics.store("commit"):
        done = server.sessions.commit(principal, id, body.manifest if body else None)
    audit(request, principal, "commit", id=id, run=done.run, step=done.step, digest=done.digest)
    return done


@router.delete("/v1/uploads/{id}", summary="Give an upload up", status_code=204)
def delete_upload(request: Request, server: Server, principal: Writer, id: _Id) -> None:
    """Forget what has arrived."""
    server.sessions.delete(principal, id)
    audit(request, principal, "abandon", id=id)
