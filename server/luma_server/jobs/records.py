"""What the store remembers of conversions, also of those whose server is gone."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.errors import CheckpointError, UnsafeNameError
from luma_core.wire import Job
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.presence import Presence

INTERRUPTED = "interrupted"
ENDED = ("done", "failed", "cancelled")
RESULT_NAME = "result.pt"

_FOLDER = "jobs"
_RECORD_NAME = "job.json"
_MAX_RECORD_BYTES = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Record:
    """A job, and whose it is.

    Attributes:
        job: what clients see.
        owner: id of the token that asked for it.
        server: id of the server that works on it.
        beat: when that server last wrote this, in seconds since 1970.
    """

    job: Job
    owner: str
    server: str = ""
    beat: float = 0.0


_adapter = TypeAdapter(Record)


class JobRecords:
    """The records of a root. Its methods block.

    Args:
        catalog: where checkpoints come from and go to.
        presence: tells which servers are alive.
    """

    def __init__(self, catalog: Catalog, presence: Presence) -> None:
        self._catalog = catalog
        self._presence = presence
        self._writing = threading.Lock()
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
        """Return a record, if there is one; a job whose server is gone has ended.

        Raises:
            StorageError: the store failed.
        """
        if not _ID.fullmatch(job_id):
            return None
        with storage_errors(_FOLDER):
            record = self._stored(job_id)
            if record is None or record.job.state in ENDED:
                return record
            if self._presence.is_there(record.server):
                return record
            # Its server may have ended it, and itself, since.
            record = self._stored(job_id)
        if record is None or record.job.state in ENDED:
            return record
        if self.is_published(record.job):
            return replace(record, job=replace(record.job, state="done"))
        return replace(record, job=replace(record.job, state="failed", error=INTERRUPTED))

    def _stored(self, job_id: str) -> Record | None:
        try:
            data = self.store(job_id).read_range(_RECORD_NAME, 0, _MAX_RECORD_BYTES)
            return _adapter.validate_json(data)
        except (FileNotFoundError, UnsafeNameError, ValidationError):
            return None

    def write(self, job_id: str, latest: Callable[[], Record | None]) -> None:
        """Remember a job.

        Args:
            job_id: names it.
            latest: returns what to remember, when it is this one's turn: a record that waits for
                the store must not replace a later one.

        Raises:
            StorageError: the store failed.
        """
        with self._writing, storage_errors(_FOLDER):
            record = latest()
            if record is None:
                return
            with self.store(job_id).write(_RECORD_NAME) as out:
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
