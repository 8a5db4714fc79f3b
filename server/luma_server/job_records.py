"""What the store remembers of conversions, also of those whose server is gone."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.store import Store, storage_errors
from luma_core.errors import CheckpointError, UnsafeNameError
from luma_core.wire import Job
from luma_server.catalog import Catalog

INTERRUPTED = "interrupted"
ENDED = ("done", "failed", "cancelled")
RESULT_NAME = "result.pt"

_FOLDER = "jobs"
_RECORD_NAME = "job.json"
_MAX_RECORD_BYTES = 1 << 20
_SILENT_SECONDS = 60.0
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Record:
    """A job, and whose it is.

    Attributes:
        job: what clients see.
        owner: id of the token that asked for it.
        host: machine of the server that works on it.
        pid: its process.
        beat: when that process last wrote this, in seconds since 1970.
    """

    job: Job
    owner: str
    host: str
    pid: int
    beat: float

    @staticmethod
    def of(job: Job, owner: str) -> Record:
        """Return the record of a job that this process works on."""
        return Record(job, owner, socket.gethostname(), os.getpid(), 0.0)

    @property
    def interrupted(self) -> bool:
        """Whether the server that worked on it is gone."""
        if self.job.state in ENDED:
            return False
        if self.host == socket.gethostname() and self.pid != os.getpid():
            return not Path(f"/proc/{self.pid}").exists() if Path("/proc").exists() else False
        return datetime.now(UTC).timestamp() - self.beat > _SILENT_SECONDS


_adapter = TypeAdapter(Record)


class JobRecords:
    """The records of a root. Its methods block.

    Args:
        catalog: where checkpoints come from and go to.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._jobs = catalog.root.private(_FOLDER)

    def store(self, job_id: str) -> Store:
        """Return where a job's record and its download are."""
        return self._catalog.root.private(_FOLDER, job_id)

    def ids(self) -> list[str]:
        """Return the ids of all jobs.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(_FOLDER):
            return self._jobs.folders()

    def read(self, job_id: str) -> Record | None:
        """Return a record, if there is one; a job whose server is gone has ended."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            data = self.store(job_id).read_range(_RECORD_NAME, 0, _MAX_RECORD_BYTES)
            record = _adapter.validate_json(data)
        except (FileNotFoundError, UnsafeNameError, ValidationError):
            return None
        except OSError as error:
            with storage_errors(_FOLDER):
                raise error
        if not record.interrupted:
            return record
        if self.is_published(record.job):
            return replace(record, job=replace(record.job, state="done"))
        return replace(record, job=replace(record.job, state="failed", error=INTERRUPTED))

    def write(self, record: Record) -> None:
        """Remember a job.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(_FOLDER), self.store(record.job.id).write(_RECORD_NAME) as out:
            out.write(json.dumps(asdict(record)).encode())
            out.commit()

    def remove(self, job_id: str) -> None:
        """Forget a job and its download.

        Raises:
            StorageError: the store failed.
        """
        store = self.store(job_id)
        with storage_errors(_FOLDER):
            for name in store.names():
                store.delete(name)
            store.remove_folder()

    def is_published(self, job: Job) -> bool:
        """Return whether the result of a job is there, whatever became of its server.

        A checkpoint counts that was written since the job began; there was none when it was asked
        for.
        """
        if job.started is None:
            return False
        try:
            if job.to is None:
                return self.store(job.id).size(RESULT_NAME) is not None
            self._catalog.changed(job.to.run, job.to.step)
            written = self._catalog.summary(job.to.run, job.to.step).info.created
            if written is None:
                return False
            # Manifests tell the second.
            began = datetime.fromisoformat(job.started).replace(microsecond=0)
            return datetime.fromisoformat(written) >= began
        except (CheckpointError, OSError, ValueError):
            return False
