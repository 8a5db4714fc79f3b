"""What is inside checkpoints: statistics, by module, over steps, and compared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from luma_core.checkpoint.storage import check_name
from luma_core.errors import ServiceError
from luma_core.stats import METRICS, CheckpointStats, ModuleList
from luma_core.wire import CheckpointInfo
from luma_core.wire_stats import Comparison, Series
from luma_server.analysis import spread
from luma_server.catalog.place import not_found
from luma_server.http.access import Reader
from luma_server.http.problems import ApiError
from luma_server.http.transfer import is_known, not_modified
from luma_server.numbers import Wanted
from luma_server.routes.common import (
    CONDITIONAL,
    MAX_NAME_CHARACTERS,
    MAX_PATTERN_CHARACTERS,
    Run,
    Server,
    Step,
    json_response,
)
from luma_server.service import ReplacedError, stats_etag

MAX_DEPTH = 32
MAX_POINTS = 500

_ATTEMPTS = 3
"""Tries at a checkpoint that is replaced again and again while it is read."""

router = APIRouter()

_Pattern = Annotated[
    str | None,
    Query(
        max_length=MAX_PATTERN_CHARACTERS,
        description="Shell pattern that chooses parameters by name; all without it",
    ),
]
_Number = Annotated[int | None, Query(ge=0, le=(1 << 63) - 1)]


@router.get(
    "/v1/checkpoints/{run}/{step}/stats",
    summary="Statistics of the optimizer state in a checkpoint",
    response_model=CheckpointStats,
    responses=CONDITIONAL,
)
async def get_stats(
    request: Request, server: Server, _: Reader, run: Run, step: Step, param: _Pattern = None
) -> Response:
    """Measure moments, scales, codes and updates, per parameter and in total."""

    async def answer() -> Response:
        digest = await run_sync(server.service.digest, run, step)
        etag = stats_etag(digest, param)
        if is_known(request, etag):
            return not_modified(etag)
        return json_response(await server.service.stats(run, step, param, digest), etag)

    return await _settled(answer, f"{run}/{step}")


@router.get(
    "/v1/checkpoints/{run}/{step}/stats/modules",
    summary="Statistics by module",
    response_model=ModuleList,
    responses=CONDITIONAL,
)
async def get_modules(
    request: Request,
    server: Server,
    _: Reader,
    run: Run,
    step: Step,
    depth: Annotated[
        int, Query(ge=1, le=MAX_DEPTH, description="Parts of a name that make its module")
    ] = 1,
) -> Response:
    """Add up the statistics of parameters whose names begin with the same parts."""

    async def answer() -> Response:
        digest = await run_sync(server.service.digest, run, step)
        etag = stats_etag(digest, "modules", str(depth))
        if is_known(request, etag):
            return not_modified(etag)
        return json_response(await server.analysis.modules(run, step, digest, depth), etag)

    return await _settled(answer, f"{run}/{step}")


@router.get("/v1/runs/{run}/series", summary="One number over the steps of a run")
async def get_series(
    server: Server,
    _: Reader,
    run: Run,
    metric: Annotated[str, Query(max_length=100)] = "update.rms",
    param: Annotated[str | None, Query(max_length=MAX_PATTERN_CHARACTERS)] = None,
    module: Annotated[str | None, Query(max_length=MAX_PATTERN_CHARACTERS)] = None,
    first: Annotated[int | None, Query(alias="from", ge=0, le=(1 << 63) - 1)] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, le=(1 << 63) - 1)] = None,
    points: Annotated[int, Query(ge=1, le=MAX_POINTS)] = 100,
) -> Series:
    """Show a metric of one parameter, of a module or of all; `pending` points come later."""
    if param is not None and module is not None:
        raise ApiError("invalid_request", "query: param and module exclude each other.")
    if metric not in METRICS:
        raise ApiError(
            "invalid_request",
            f"query.metric: {metric!r} is not known.",
            hint=f"One of {', '.join(METRICS)}.",
        )
    check_name(run)

    def find() -> list[CheckpointInfo]:
        infos = server.catalog.infos(server.catalog.seen(run))
        return [info for info in infos if _is_between(info.optimizer_step, first, last)]

    infos = await run_sync(find)
    if not infos:
        raise not_found(run, "*")
    return await server.analysis.series(run, spread(infos, points), Wanted(metric, param, module))


def _is_between(step: int | None, first: int | None, last: int | None) -> bool:
    if step is None:
        return first is None and last is None
    return (first is None or step >= first) and (last is None or step <= last)


@router.get(
    "/v1/compare",
    summary="Two checkpoints side by side",
    response_model=Comparison,
    responses=CONDITIONAL,
)
async def compare(
    request: Request,
    server: Server,
    principal: Reader,
    a: Annotated[str, Query(max_length=2 * MAX_NAME_CHARACTERS + 1, description="run/step")],
    b: Annotated[str, Query(max_length=2 * MAX_NAME_CHARACTERS + 1, description="run/step")],
    param: _Pattern = None,
) -> Response:
    """Measure how far moments and updates of `b` are from those of `a`."""
    first, second = _place("a", a), _place("b", b)
    principal.check_run(first[0], second[0])

    async def answer() -> Response:
        digests = [await run_sync(server.service.digest, *place) for place in (first, second)]
        etag = stats_etag(digests[0], "compare", digests[1], a, b, param)
        if is_known(request, etag):
            return not_modified(etag)
        one, other = (*first, digests[0]), (*second, digests[1])
        return json_response(await server.analysis.compare(one, other, param), etag)

    return await _settled(answer, f"{a} or {b}")


def _place(argument: str, text: str) -> tuple[str, str]:
    run, separator, step = text.partition("/")
    if not separator:
        raise ApiError("invalid_request", f"query.{argument}: it must be RUN/STEP.")
    return check_name(run), check_name(step)


async def _settled(answer: Callable[[], Awaitable[Response]], place: str) -> Response:
    """Answer again where a checkpoint was replaced while it was read."""
    for _ in range(_ATTEMPTS):
        try:
            return await answer()
        except ReplacedError:
            continue
    raise ServiceError(f"the checkpoint {place} is being replaced.", hint="Ask again in a moment.")
