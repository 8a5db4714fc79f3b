"""Conversions behind the answer: in worker processes, a few at a time, remembered in the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import sys
import tempfile
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from luma_core.checkpoint.format import MANIFEST_NAME
from luma_core.checkpoint.format.folder import CheckpointFolder
from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.errors import CheckpointError
from luma_core.wire import Job, Place
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.claims import remove_empty
from luma_server.catalog.presence import Presence
from luma_server.http.access import Principal
from luma_server.http.problems import ApiError
from luma_server.jobs.records import ENDED, INTERRUPTED, RESULT_NAME, JobRecords, Record
from luma_server.settings import Settings

_log = logging.getLogger(__name__)

DOWNLOADS = ("adamw", "fsdp")
"""Formats of one file, which can be downloaded."""

_PROGRESS_SECONDS = 5.0
"""Between two times that others over the same root are told how far a job is."""

_COPY_BYTES = 4 << 20


class Jobs:
    """The jobs of a root; belongs to one event loop.

    Args:
        catalog: where checkpoints come from and go to.
        settings: limits.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._root = catalog.root
        self._settings = settings
        self._presence = Presence(catalog.root)
        self._records = JobRecords(catalog, self._presence)
        self._slots = asyncio.Semaphore(settings.job_workers)
        self._mine: dict[str, Record] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._decided: set[str] = set()

    async def start(
        self,
        principal: Principal,
        source: Place,
        *,
        to: Place | None,
        format: str,
        codec: str,
    ) -> Job:
        """Begin to convert a checkpoint.

        Args:
            principal: who asks.
            source: what to convert.
            to: where the result shall be a checkpoint; ``None`` for a download.
            format: what it becomes.
            codec: how moments are kept where that is a checkpoint.

        Raises:
            ApiError: there are too many jobs.
            CheckpointError: there is no such checkpoint, or one at ``to``.
        """
        await run_sync(self._catalog.summary, source.run, source.step)
        if len(self._tasks) >= self._settings.max_queued_jobs + self._settings.job_workers:
            raise ApiError(
                "too_many_jobs",
                f"{len(self._tasks)} jobs wait already.",
                headers={"Retry-After": "30"},
            )
        job = Job(
            id=secrets.token_hex(16),
            kind="convert",
            state="queued",
            run=source.run,
            step=source.step,
            format=format,
            codec=codec,
            to=to,
            created=_now(),
        )
        record = Record(job, principal.id, await run_sync(self._enter))
        await self._keep(record)
        self._tasks[job.id] = asyncio.create_task(self._work(record))
        return job

    async def get(self, principal: Principal, job_id: str) -> Job:
        """Return a job of whoever asks.

        Raises:
            ApiError: there is none.
        """
        return (await self._find(principal, job_id)).job

    async def list(self, principal: Principal) -> list[Job]:
        """Return the jobs of whoever asks, the latest first."""
        found = []
        for job_id in await run_sync(self._records.ids):
            with contextlib.suppress(ApiError):
                found.append(await self.get(principal, job_id))
        return sorted(found, key=lambda job: job.created, reverse=True)

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        """End a job; one that has ended stays as it is.

        Raises:
            ApiError: there is none, or another server works on it.
        """
        record = await self._find(principal, job_id)
        task = self._tasks.get(job_id)
        if task is not None:
            self._end(job_id, task)
            await asyncio.wait([task])
            return (await self._find(principal, job_id)).job
        if record.job.state not in ENDED:
            raise ApiError("unavailable", "another server works on that job.", hint="Ask it.")
        return record.job

    async def result(self, principal: Principal, job_id: str) -> tuple[Store, Job]:
        """Return where the download of a job is.

        Raises:
            ApiError: there is none, or not yet.
        """
        job = await self.get(principal, job_id)
        if job.state != "done" or job.to is not None:
            what = "its result is a checkpoint" if job.to else f"it is {job.state}"
            raise ApiError("job_not_finished", f"the job has no download: {what}.")
        return self._records.store(job_id), job

    def count(self) -> dict[str, int]:
        """Return how many of this server's jobs are in which state."""
        states = [record.job.state for record in self._mine.values()]
        return {state: states.count(state) for state in sorted(set(states))}

    async def close(self) -> None:
        """End all work; jobs are told as interrupted from then on."""
        tasks = dict(self._tasks)
        for job_id, task in tasks.items():
            self._end(job_id, task, INTERRUPTED)
        if tasks:
            await asyncio.wait(tasks.values())
        await run_sync(self._presence.leave)

    def _end(self, job_id: str, task: asyncio.Task[None], *why: str) -> None:
        """Have a job end, unless it has, or somebody had it end before: that is decided once."""
        if job_id not in self._decided and not task.cancelling():
            task.cancel(*why)

    def _enter(self) -> str:
        with storage_errors("servers"):
            return self._presence.enter()

    def sweep(self) -> None:
        """Forget jobs that ended long ago, and servers that are gone; blocks.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors("servers"):
            self._presence.sweep()
        now = datetime.now(UTC).timestamp()
        for job_id in self._records.ids():
            record = self._records.read(job_id)
            if record is None or now - record.beat < self._settings.job_keep_seconds:
                continue
            if record.job.state in ENDED:
                self._records.remove(job_id)

    async def _find(self, principal: Principal, job_id: str) -> Record:
        record = self._mine.get(job_id) or await run_sync(self._records.read, job_id)
        allowed = record is not None and (record.owner == principal.id or principal.may("admin"))
        if record is None or not allowed:
            raise ApiError("job_not_found", f"there is no job {job_id[:64]!r}.")
        return record

    async def _keep(self, record: Record, **changes: Any) -> Record:
        record = replace(
            record,
            job=replace(record.job, **changes),
            beat=datetime.now(UTC).timestamp(),
        )
        job_id = record.job.id
        self._mine[job_id] = record
        await run_sync(self._records.write, job_id, lambda: self._mine.get(job_id))
        return record

    async def _keep_ended(self, job_id: str, **changes: Any) -> None:
        """Store how a job ended, and tell it only then: a server that asks later finds the same."""
        record = self._mine[job_id]
        beat = datetime.now(UTC).timestamp()
        record = replace(record, job=replace(record.job, finished=_now(), **changes), beat=beat)
        try:
            await run_sync(self._records.write, job_id, lambda: record)
        except (OSError, CheckpointError):
            _log.exception("how a job ended could not be stored", extra={"job": job_id})
        self._mine[job_id] = record

    async def _work(self, record: Record) -> None:
        job_id = record.job.id
        try:
            async with self._slots:
                record = await self._keep(record, state="running", started=_now())
                with tempfile.TemporaryDirectory(prefix="luma-job-") as folder:
                    error = await self._convert(record, Path(folder))
            ended: dict[str, Any] = {"state": "failed" if error else "done", "error": error}
        except asyncio.CancelledError as cancelled:
            # The worker has ended, so what is published now stays all that is. The latest record
            # tells when the job began, also where it was being written down at that moment.
            job = self._mine[job_id].job
            if await run_sync(self._records.is_published, job):
                ended = {"state": "done", "error": None}
            elif INTERRUPTED in cancelled.args:
                ended = {"state": "failed", "error": INTERRUPTED}
            else:
                ended = {"state": "cancelled", "error": None}
            await run_sync(self._clean, job)
        except Exception:
            _log.exception("a job failed", extra={"job": job_id})
            ended = {"state": "failed", "error": "the server failed; its log has more."}
        try:
            self._decided.add(job_id)
            await self._keep_ended(job_id, **ended)
        finally:
            self._tasks.pop(job_id, None)
            self._decided.discard(job_id)
            self._forget_old()

    def _forget_old(self) -> None:
        ended = [key for key, record in self._mine.items() if record.job.state in ENDED]
        for key in ended[: -self._settings.max_queued_jobs]:
            del self._mine[key]

    async def _convert(self, record: Record, folder: Path) -> str | None:
        """Run the worker; return why it failed, if it did."""
        job = record.job
        source = self._catalog.root.checkpoint(job.run, job.step)
        target = self._catalog.root.checkpoint(job.to.run, job.to.step) if job.to else None
        destination = target.url if target is not None else str(folder / RESULT_NAME)
        arguments = {"src": source.url, "dst": destination, "to": job.format}
        if job.format == "luma":
            arguments["codec"] = job.codec
        error = await self._run_worker(record, arguments)
        if error is None and job.to is not None:
            await run_sync(self._catalog.changed, job.to.run, job.to.step)
        elif error is None:
            await self._publish(job.id, folder / RESULT_NAME)
        return None if error is None else self._root.hide(error).replace(f"{folder}/", "")

    async def _run_worker(self, record: Record, arguments: dict[str, str]) -> str | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "luma_server.jobs.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
            last: dict[str, Any] = {}
            telling = asyncio.create_task(self._tell_others(record.job.id))
            try:
                while line := await process.stdout.readline():
                    last = json.loads(line)
                    self._tell(record.job.id, last)
            finally:
                telling.cancel()
                await asyncio.wait([telling])
            await process.wait()
        finally:
            await _kill(process)
        if "error" in last:
            return f"{last['error']} {last['hint']}".strip()
        return None if last.get("ok") else f"the worker ended with code {process.returncode}."

    def _tell(self, job_id: str, line: dict[str, Any]) -> None:
        if "done" in line:
            record = self._mine[job_id]
            job = replace(record.job, done_bytes=line["done"], total_bytes=line["total"])
            self._mine[job_id] = replace(record, job=job)

    async def _tell_others(self, job_id: str) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            with contextlib.suppress(OSError, CheckpointError):
                await run_sync(self._enter)
                await self._keep(self._mine[job_id])

    async def _publish(self, job_id: str, path: Path) -> None:
        """Store a download; where the job is to end meanwhile, it is there or never will be."""
        given_up = threading.Event()
        storing = asyncio.ensure_future(run_sync(self._store_result, job_id, path, given_up))
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            given_up.set()
            await asyncio.wait([storing])
            raise

    def _store_result(self, job_id: str, path: Path, given_up: threading.Event) -> None:
        with path.open("rb") as file, self._records.store(job_id).write(RESULT_NAME) as out:
            while data := file.read(_COPY_BYTES):
                out.write(data)
                if given_up.is_set():
                    return
            out.commit()

    def _clean(self, job: Job) -> None:
        """Remove what a worker that was ended left where its checkpoint would have been."""
        if job.to is None:
            return
        store = self._root.checkpoint(job.to.run, job.to.step)
        with contextlib.suppress(OSError, CheckpointError):
            if store.size(MANIFEST_NAME) is None:
                with store.exclusive() as alone:
                    folder = CheckpointFolder(store, overwrite=False, with_model=False, alone=alone)
                    folder.clean()
                remove_empty(self._root, job.to.run, job.to.step)


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await asyncio.shield(process.wait())
    # Closes the pipe's transport, which would complain when it is collected.
    if process.stdin is not None:
        process.stdin.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
