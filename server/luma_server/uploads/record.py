"""What is remembered of an upload session, as one small object in the store."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.storage.store import Store
from luma_core.errors import UnsafeNameError
from luma_core.wire import FileInfo
from luma_server.catalog.place import Root
from luma_server.uploads.staging import UPLOADS

RECORD_NAME = "session.json"
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Source:
    """A file of another checkpoint.

    Attributes:
        run: its run.
        step: its step.
        name: its name.
    """

    run: str
    step: str
    name: str


@dataclass(frozen=True)
class Record:
    """One session.

    Attributes:
        id: names it.
        owner: id of the token that began it.
        run: where the checkpoint will be.
        step: likewise.
        overwrite: whether it may replace one.
        expected: digest of the one that it may replace; any where ``None``.
        state: ``committed`` once the checkpoint is visible.
        created: ISO 8601 in UTC.
        expires: ISO 8601 in UTC.
        part_bytes: size of all parts of a file but the last.
        files: what the manifest names; ``None`` while it is not known.
        adopted: files that the server had already, by name.
        digest: of the committed manifest.
    """

    id: str
    owner: str
    run: str
    step: str
    overwrite: bool
    state: Literal["open", "committed"]
    created: str
    expires: str
    part_bytes: int
    files: tuple[FileInfo, ...] | None = None
    adopted: dict[str, Source] = field(default_factory=dict)
    digest: str = ""
    expected: str | None = None

    @property
    def expired(self) -> bool:
        """Whether it is to be forgotten."""
        return datetime.fromisoformat(self.expires) <= datetime.now(UTC)

    def left_seconds(self) -> float:
        """Return how long it is kept."""
        return (datetime.fromisoformat(self.expires) - datetime.now(UTC)).total_seconds()

    def declared(self, name: str) -> FileInfo | None:
        """Return what the manifest says of a file; ``None`` where it says nothing."""
        return next((file for file in self.files or () if file.name == name), None)


_adapter = TypeAdapter(Record)


def after(seconds: float) -> str:
    """Return the time that much from now, ISO 8601 in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def session_store(root: Root, session_id: str) -> Store:
    """Return the store of a session's own things."""
    return root.private(UPLOADS, session_id)


def read_record(root: Root, session_id: str) -> Record | None:
    """Return a session; ``None`` where there is none that can be read.

    Raises:
        StorageError: the store failed.
    """
    try:
        data = session_store(root, session_id).read_range(RECORD_NAME, 0, _MAX_BYTES)
        return _adapter.validate_json(data)
    except (FileNotFoundError, NotADirectoryError, UnsafeNameError, ValidationError):
        return None


def write_record(root: Root, record: Record) -> None:
    """Keep a session."""
    with session_store(root, record.id).write(RECORD_NAME) as out:
        out.write(json.dumps(asdict(record)).encode())
        out.commit()
