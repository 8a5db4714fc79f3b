"""What clients have a server compute: statistics, comparisons and conversions."""

from __future__ import annotations

import os
import secrets
from functools import partial
from pathlib import Path

from luma_client.downloads import PART_BYTES
from luma_client.effects import Request, Steps, Work
from luma_client.exchange import Endpoint, Retries, exchange, parsed
from luma_client.operation import Operation
from luma_client.queries import get, json_request, place
from luma_client.reading import read_url_into
from luma_core import catalog
from luma_core.checkpoint.storage import check_name
from luma_core.paths import resolve_path
from luma_core.stats import CheckpointStats, ModuleList
from luma_core.wire import Job, JobList
from luma_core.wire_stats import Comparison, Series


class Analyses:
    """Mixed into a runner.

    Attributes:
        endpoint: the server.
    """

    endpoint: Endpoint

    @Operation
    def stats(self, run: str, step: str, pattern: str | None = None) -> Steps[CheckpointStats]:
        """Return the statistics of a checkpoint.

        Args:
            run: name of the run.
            step: name of the step.
            pattern: shell pattern that chooses parameters by name; ``None`` takes all.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        params = _params(param=pattern)
        reply = yield from get(self.endpoint, *place(run, step), "stats", params=params)
        return parsed(CheckpointStats, reply)

    @Operation
    def modules(self, run: str, step: str, *, depth: int = 1) -> Steps[ModuleList]:
        """Return the statistics of a checkpoint, added up by module.

        Args:
            run: name of the run.
            step: name of the step.
            depth: how many parts of a parameter's name make its module.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        parts = (*place(run, step), "stats", "modules")
        return parsed(
            ModuleList, (yield from get(self.endpoint, *parts, params=_params(depth=depth)))
        )

    @Operation
    def series(
        self,
        run: str,
        *,
        metric: str = "update.rms",
        parameter: str | None = None,
        module: str | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        points: int = 100,
    ) -> Steps[Series]:
        """Return one number over the checkpoints of a run; some may still be pending.

        Args:
            run: name of the run.
            metric: what is measured.
            parameter: of this parameter; of all by default.
            module: of the parameters of this module instead.
            min_step: from this number of completed steps on.
            max_step: up to this number of completed steps.
            points: how many checkpoints at most, evenly chosen.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        params = _params(
            metric=metric, param=parameter, module=module, to=max_step, points=points
        ) + (() if min_step is None else (("from", str(min_step)),))
        parts = ("v1", "runs", check_name(run), "series")
        return parsed(Series, (yield from get(self.endpoint, *parts, params=params)))

    @Operation
    def compare(
        self, a: tuple[str, str], b: tuple[str, str], *, pattern: str | None = None
    ) -> Steps[Comparison]:
        """Return how far two checkpoints are apart, the first being the reference.

        Args:
            a: run and step.
            b: run and step.
            pattern: shell pattern that chooses parameters by name; all by default.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        first, second = ("/".join(place(*pair)[2:]) for pair in (a, b))
        params = _params(a=first, b=second, param=pattern)
        return parsed(Comparison, (yield from get(self.endpoint, "v1", "compare", params=params)))

    @Operation
    def convert(
        self,
        run: str,
        step: str,
        *,
        format: str,
        codec: str = catalog.DEFAULT_TARGET,
        to: tuple[str, str] | None = None,
    ) -> Steps[Job]:
        """Begin to convert a checkpoint on the server; `job` tells how it goes.

        Args:
            run: name of the run.
            step: name of the step.
            format: what it becomes: ``luma``, ``adamw`` or ``fsdp``.
            codec: to ``luma``: how moments are kept.
            to: to ``luma``: run and step of the result; others are for `save_job_result`.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointExistsError: there is one at ``to``.
            ServiceError: the server does not answer, or with an error.
        """
        body: dict[str, object] = {"format": format, "codec": codec}
        if to is None:
            body["download"] = True
        else:
            body["to"] = {"run": check_name(to[0]), "step": check_name(to[1])}
        request = json_request("POST", self.endpoint.url(*place(run, step), "convert"), body)
        # Asked twice, it would be done twice.
        once = Retries(attempts=1)
        return parsed(
            Job, (yield from exchange(self.endpoint, request, accept=(202,), retries=once))
        )

    @Operation
    def jobs(self) -> Steps[list[Job]]:
        """Return the jobs that the server remembers, the latest first.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        return list(parsed(JobList, (yield from get(self.endpoint, "v1", "jobs"))).items)

    @Operation
    def job(self, job_id: str) -> Steps[Job]:
        """Return how a job goes.

        Raises:
            ServiceError: there is no such job, or the server does not answer, or with an error.
        """
        return parsed(Job, (yield from get(self.endpoint, "v1", "jobs", check_name(job_id))))

    @Operation
    def cancel_job(self, job_id: str) -> Steps[Job]:
        """End a job; does nothing to one that has ended.

        Raises:
            ServiceError: there is no such job, or the server does not answer, or with an error.
        """
        request = Request("DELETE", self.endpoint.url("v1", "jobs", check_name(job_id)))
        return parsed(Job, (yield from exchange(self.endpoint, request)))

    @Operation
    def save_job_result(self, job_id: str, path: str | os.PathLike[str]) -> Steps[None]:
        """Write the file that a job made to ``path``, replacing what is there once it is whole.

        Raises:
            CheckpointNotFoundError: there is no such job.
            ServiceError: the job has no result, or the server does not answer, or with an error.
            OSError: the file cannot be written.
        """
        url = self.endpoint.url("v1", "jobs", check_name(job_id), "result")
        # Resolved by the call, not when what it returns is awaited.
        return _save_file(self.endpoint, url, resolve_path(path))


def _save_file(endpoint: Endpoint, url: str, target: Path) -> Steps[None]:
    out, start = memoryview(bytearray(PART_BYTES)), 0
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            while count := (yield from read_url_into(endpoint, url, start, out)):
                yield Work(partial(file.write, out[:count]))
                start += count
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _params(**given: object) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in given.items() if value is not None)
