"""What the server and its clients exchange beside manifests and statistics, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

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
    """One checkpoint of a listing; where ``error`` is set, all but its names are ``None``.

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
        digest: SHA-256 of the manifest, hex.
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
    digest: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class CheckpointList:
    """All committed checkpoints.

    Attributes:
        checkpoints: by run and step, numbers in names by their value.
    """

    checkpoints: tuple[CheckpointInfo, ...]


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
