"""What the server and its clients exchange beside manifests and statistics, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PROBLEM_MEDIA_TYPE = "application/problem+json"
"""Media type of every error body (RFC 9457)."""

REQUEST_ID_HEADER = "X-Request-ID"
"""Identifies a request in answers, problems and the server's log."""

CODE_CHECKPOINT_NOT_FOUND = "checkpoint_not_found"
"""`Problem.code` where a run has no committed checkpoint of that step."""


@dataclass(frozen=True)
class Health:
    """The server answers.

    Attributes:
        status: ``"ok"``.
        version: of the server's software.
    """

    status: str
    version: str


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a listing; where ``error`` is set, nothing of its manifest is known.

    Attributes:
        run: name of its run.
        step: name of its folder in the run.
        created: when it was written, ISO 8601 in UTC.
        algorithm: the optimizer's algorithm.
        optimizer_step: completed steps: the largest of any parameter.
        parameters: number of parameters.
        elements: their elements.
        state_bytes: size of the optimizer state in memory.
        stored_bytes: size of the optimizer shards.
        bytes: size of all files but the manifest.
        adamw_bytes: what AdamW's two float32 moments would take: 8 bytes for each element.
        digest: SHA-256 of the manifest, hex.
        pinned: whether the server refuses to delete or replace it.
        labels: what people keep beside it, by key.
        error: why the manifest cannot be read; ``None`` where it can.
    """

    run: str
    step: str
    created: str | None = None
    algorithm: str | None = None
    optimizer_step: int | None = None
    parameters: int | None = None
    elements: int | None = None
    state_bytes: int | None = None
    stored_bytes: int | None = None
    bytes: int | None = None
    adamw_bytes: int | None = None
    digest: str | None = None
    pinned: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class CheckpointPage:
    """Some of the committed checkpoints.

    Attributes:
        items: by run and step, numbers in names by their value.
        next_cursor: what asks for those that follow; ``None`` where none do.
    """

    items: tuple[CheckpointInfo, ...]
    next_cursor: str | None = None


@dataclass(frozen=True)
class RunInfo:
    """One run.

    Attributes:
        run: its name.
        checkpoints: how many it has.
        latest_step: the last of their names in the order of listings.
    """

    run: str
    checkpoints: int
    latest_step: str


@dataclass(frozen=True)
class RunList:
    """All runs that have checkpoints, by name.

    Attributes:
        items: the runs.
    """

    items: tuple[RunInfo, ...]


@dataclass(frozen=True)
class FileInfo:
    """One file of a checkpoint.

    Attributes:
        name: its name.
        size_bytes: its size.
        sha256: of its content, hex.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class FileList:
    """The files that a manifest names.

    Attributes:
        items: in the manifest's order.
    """

    items: tuple[FileInfo, ...]


@dataclass(frozen=True)
class UploadFile:
    """One file of an upload session.

    Attributes:
        name: its name.
        size_bytes: its size; ``None`` where the manifest is not known yet.
        sha256: of its content, hex; ``None`` likewise.
        needed: whether parts of it are wanted: the server has not all of its bytes.
        received: numbers of the parts that arrived, ascending, from 1.
    """

    name: str
    size_bytes: int | None
    sha256: str | None
    needed: bool
    received: tuple[int, ...] = ()


@dataclass(frozen=True)
class UploadSession:
    """A checkpoint on its way to the server.

    Attributes:
        id: names the session.
        run: where the checkpoint will be.
        step: likewise.
        state: ``committed`` once the checkpoint is visible.
        created: when it was begun, ISO 8601 in UTC.
        expires: when it is forgotten, ISO 8601 in UTC; each part that arrives puts it off.
        part_bytes: size of every part of a file but the last.
        files: what the manifest names, or what arrived where it is not known yet.
    """

    id: str
    run: str
    step: str
    state: Literal["open", "committed"]
    created: str
    expires: str
    part_bytes: int
    files: tuple[UploadFile, ...]


@dataclass(frozen=True)
class UploadList:
    """The open sessions of whoever asks.

    Attributes:
        items: by the time they were begun.
    """

    items: tuple[UploadSession, ...]


@dataclass(frozen=True)
class Committed:
    """A checkpoint that became visible.

    Attributes:
        run: its run.
        step: its step.
        digest: SHA-256 of its manifest, hex.
    """

    run: str
    step: str
    digest: str


JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        run: its run.
        step: its step.
    """

    run: str
    step: str


@dataclass(frozen=True)
class Job:
    """Work that the server does behind the answer.

    Attributes:
        id: names the job.
        kind: ``convert``.
        state: where it is; the last three do not change any more.
        run: run of the checkpoint that is converted.
        step: its step.
        format: what it becomes.
        codec: how moments are kept where that is a checkpoint of ours.
        to: where the result will be a checkpoint; ``None`` where it is a download.
        created: when it was asked for, ISO 8601 in UTC.
        started: when work began.
        finished: when it ended.
        done_bytes: how much is done.
        total_bytes: of how much; 0 while that is not known.
        error: why it failed; ``None`` where it did not.
    """

    id: str
    kind: Literal["convert"]
    state: JobState
    run: str
    step: str
    format: str
    codec: str
    to: Place | None
    created: str
    started: str | None = None
    finished: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class JobList:
    """The jobs the server remembers.

    Attributes:
        items: the latest first.
    """

    items: tuple[Job, ...]


@dataclass(frozen=True)
class Problem:
    """The body of every error (RFC 9457), with three fields of our own.

    Attributes:
        status: the HTTP status code.
        title: its name.
        detail: what was wrong, in one sentence.
        code: the kind of problem, for programs.
        hint: what to do about it; empty where nothing helps.
        request_id: names the request in the server's log.
        type: always ``about:blank``: ``code`` tells more than the status.
    """

    status: int
    title: str
    detail: str
    code: str
    hint: str = ""
    request_id: str = ""
    type: str = "about:blank"
