"""Conversions that the server makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict

from luma_core import catalog
from luma_core.checkpoint.storage import check_name
from luma_core.errors import CheckpointExistsError, CheckpointNotFoundError
from luma_core.wire import Job, JobList, Place
from luma_server.http.access import Reader, Writer
from luma_server.http.problems import ApiError
from luma_server.http.transfer import file_response
from luma_server.jobs.queue import DOWNLOADS
from luma_server.jobs.records import RESULT_NAME
from luma_server.routes.common import Run, Server, Step, audit

router = APIRouter()

_Id = Annotated[str, Path(description="Id of the job")]

if TYPE_CHECKING:
    _Format = str
    _Codec = str
else:
    _Format = Literal[("luma", *DOWNLOADS)]
    _Codec = Literal[catalog.TARGET_NAMES]


class Target(BaseModel):
    """Where a checkpoint shall be."""

    model_config = ConfigDict(extra="forbid")

    run: str
    step: str


class Convert(BaseModel):
    """What a checkpoint shall become.

    Attributes:
        format: ``luma`` with ``to``, the others with ``download``.
        codec: to ``luma``: how moments are kept.
        to: where the result shall be a checkpoint.
        download: whether the result shall be a file.
    """

    model_config = ConfigDict(extra="forbid")

    format: _Format
    codec: _Codec = catalog.DEFAULT_TARGET
    to: Target | None = None
    download: bool = False

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            ApiError: they do not.
        """
        if self.download == (self.to is not None):
            raise ApiError("invalid_request", "body: give one of 'to' and 'download'.")
        if self.download != (self.format in DOWNLOADS):
            raise ApiError(
                "invalid_request",
                f"body.format: {self.format!r} does not go with that.",
                hint=f"'to' goes with luma, 'download' with {' and '.join(DOWNLOADS)}.",
            )


@router.post(
    "/v1/checkpoints/{run}/{step}/convert", summary="Convert a checkpoint", status_code=202
)
async def convert(
    request: Request, server: Server, principal: Writer, run: Run, step: Step, body: Convert
) -> Job:
    """Begin to convert, in a process apart; the job tells how it goes."""
    body.check()
    to = None
    if body.to is not None:
        principal.check_run(body.to.run)
        to = Place(check_name(body.to.run), check_name(body.to.step))
        await run_sync(_check_free, server, to)
    job = await server.jobs.start(
        principal, Place(run, step), to=to, format=body.format, codec=body.codec
    )
    audit(request, principal, "convert", id=job.id, run=run, step=step)
    return job


def _check_free(server: Server, to: Place) -> None:
    try:
        server.catalog.summary(to.run, to.step)
    except CheckpointNotFoundError:
        return
    raise CheckpointExistsError(
        f"there is a checkpoint {to.run}/{to.step} already.", hint="Choose another step."
    )


@router.get("/v1/jobs", summary="Jobs of the token")
async def list_jobs(server: Server, principal: Reader) -> JobList:
    """List jobs, the latest first; `admin` sees those of all."""
    return JobList(tuple(await server.jobs.list(principal)))


@router.get("/v1/jobs/{id}", summary="How a job goes")
async def get_job(server: Server, principal: Reader, id: _Id) -> Job:
    """Tell state and progress."""
    return await server.jobs.get(principal, id)


@router.delete("/v1/jobs/{id}", summary="Cancel a job")
async def cancel_job(request: Request, server: Server, principal: Writer, id: _Id) -> Job:
    """End the job's process; one that has ended stays as it is."""
    job = await server.jobs.cancel(principal, id)
    audit(request, principal, "cancel", id=id)
    return job


@router.get(
    "/v1/jobs/{id}/result",
    summary="The file that a job made",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}},
        206: {"description": "The range that was asked for"},
        304: {"description": "Unchanged"},
        416: {"description": "The range begins behind the end"},
    },
)
async def get_result(request: Request, server: Server, principal: Reader, id: _Id) -> Response:
    """Answer with the file, or one range of it."""
    store, job = await server.jobs.result(principal, id)
    principal.check_run(job.run)
    size = await run_sync(store.size, RESULT_NAME)
    if size is None:
        raise ApiError("file_not_found", "the result was removed.", hint="Convert again.")
    kind = "application/octet-stream"
    return file_response(
        request, store, RESULT_NAME, size_bytes=size, etag=f'"{job.id}"', media_type=kind
    )
