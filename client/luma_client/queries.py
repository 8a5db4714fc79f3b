"""What clients ask and change without moving files."""

from __future__ import annotations

import json
from collections.abc import Mapping

from luma_client.effects import Reply, Request, Steps
from luma_client.exchange import Endpoint, exchange, parsed, require_json
from luma_client.operation import Operation
from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import parse_manifest
from luma_core.checkpoint.storage import check_name
from luma_core.errors import CheckpointNotFoundError
from luma_core.wire import (
    CheckpointInfo,
    CheckpointPage,
    FileInfo,
    FileList,
    Health,
    RunInfo,
    RunList,
)

PAGE_ITEMS = 1000
"""Checkpoints of one page of a listing; the server sends no more."""

_JSON = {"Accept": "application/json, application/problem+json"}


class Queries:
    """Mixed into a runner.

    Attributes:
        endpoint: the server.
    """

    endpoint: Endpoint

    @Operation
    def health(self) -> Steps[Health]:
        """Return the server's own word that it works.

        Raises:
            ServiceError: it does not answer, or with an error.
        """
        return parsed(Health, (yield from get(self.endpoint, "healthz")))

    @Operation
    def runs(self) -> Steps[list[RunInfo]]:
        """Return all runs that have checkpoints, by name.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        return list(parsed(RunList, (yield from get(self.endpoint, "v1", "runs"))).items)

    @Operation
    def checkpoints(
        self,
        *,
        run: str | None = None,
        prefix: str | None = None,
        labels: Mapping[str, str | None] | None = None,
        pinned: bool | None = None,
        optimizer: str | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        limit: int | None = None,
    ) -> Steps[list[CheckpointInfo]]:
        """Return committed checkpoints, by run and step; damaged ones have an ``error``.

        Args:
            run: only of this run.
            prefix: only of runs whose names begin so.
            labels: only with these labels; None as a value stands for any.
            pinned: only those that are, or are not, pinned.
            optimizer: only of this algorithm.
            min_step: only with at least so many completed steps.
            max_step: only with at most so many completed steps.
            limit: at most so many, the first ones; all by default.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        wanted = {
            "run": run,
            "prefix": prefix,
            "pinned": None if pinned is None else str(pinned).lower(),
            "optimizer": optimizer,
            "min_step": min_step,
            "max_step": max_step,
        }
        params = [(key, str(value)) for key, value in wanted.items() if value is not None]
        for key, value in (labels or {}).items():
            params.append(("label", key if value is None else f"{key}:{value}"))
        found: list[CheckpointInfo] = []
        cursor: str | None = ""
        while cursor is not None and (limit is None or len(found) < limit):
            left = PAGE_ITEMS if limit is None else min(PAGE_ITEMS, limit - len(found))
            page = [("limit", str(left)), *([("cursor", cursor)] if cursor else [])]
            reply = yield from get(self.endpoint, "v1", "checkpoints", params=(*params, *page))
            answer = parsed(CheckpointPage, reply)
            found += answer.items
            cursor = answer.next_cursor
        return found[:limit]

    @Operation
    def checkpoint(self, run: str, step: str) -> Steps[Manifest]:
        """Return the manifest of a checkpoint, its checksum checked.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
            CorruptCheckpointError: what arrived is not the manifest that was written.
            UnsupportedVersionError: a newer version wrote it.
            ServiceError: the server does not answer, or with an error.
        """
        reply = yield from manifest_of(self.endpoint, run, step)
        return parse_manifest(reply.content, where=reply.url)

    @Operation
    def info(self, run: str, step: str) -> Steps[CheckpointInfo]:
        """Return the listing entry of one checkpoint, with its pin and labels.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        return parsed(CheckpointInfo, (yield from get(self.endpoint, *place(run, step), "info")))

    @Operation
    def files(self, run: str, step: str) -> Steps[list[FileInfo]]:
        """Return the files of a checkpoint, without its manifest.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        reply = yield from get(self.endpoint, *place(run, step), "files")
        return list(parsed(FileList, reply).items)

    @Operation
    def version(
        self, run: str, step: str, name: str | None = None
    ) -> Steps[tuple[int, str] | None]:
        """Return size in bytes and entity tag of a file, or None where there is none.

        Args:
            run: name of the run.
            step: name of the step.
            name: of the file; the manifest by default.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        parts = place(run, step) if name is None else (*place(run, step), "files", check_name(name))
        request = Request("HEAD", self.endpoint.url(*parts))
        reply: Reply = yield from exchange(self.endpoint, request, accept=(200, 404))
        if reply.status == 404:
            return None
        return int(reply.headers.get("Content-Length", "0")), reply.headers.get("ETag", "")

    @Operation
    def delete(self, run: str, step: str) -> Steps[None]:
        """Remove a checkpoint; does nothing where there is none.

        Raises:
            ServiceError: it is pinned, another needs it, or the server does not answer, or with an
                error.
        """
        request = Request("DELETE", self.endpoint.url(*place(run, step)), headers=_JSON)
        try:
            yield from exchange(self.endpoint, request, accept=(200, 204))
        except CheckpointNotFoundError:
            # A try before this one may have done it.
            return

    @Operation
    def pin(self, run: str, step: str, *, pinned: bool = True) -> Steps[None]:
        """Keep a checkpoint from being deleted and replaced, or let go of it.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        url = self.endpoint.url(*place(run, step), "pin")
        request = Request("PUT" if pinned else "DELETE", url, headers=_JSON)
        yield from exchange(self.endpoint, request, accept=(200, 204))

    @Operation
    def set_labels(self, run: str, step: str, labels: Mapping[str, str]) -> Steps[CheckpointInfo]:
        """Replace all labels of a checkpoint.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        url = self.endpoint.url(*place(run, step), "labels")
        reply = yield from exchange(
            self.endpoint, json_request("PUT", url, {"labels": dict(labels)})
        )
        return parsed(CheckpointInfo, reply)


def place(run: str, step: str) -> tuple[str, ...]:
    """Return the path of a checkpoint.

    Raises:
        UnsafeNameError: a name is not a safe path component.
    """
    return ("v1", "checkpoints", check_name(run), check_name(step))


def get(endpoint: Endpoint, *parts: str, params: tuple[tuple[str, str], ...] = ()) -> Steps[Reply]:
    """Ask for a resource that is JSON."""
    request = Request("GET", endpoint.url(*parts), params=params, headers=_JSON)
    return (yield from exchange(endpoint, request))


def manifest_of(endpoint: Endpoint, run: str, step: str) -> Steps[Reply]:
    """Return the answer that holds ``luma.json``, byte for byte."""
    reply: Reply = yield from get(endpoint, *place(run, step))
    require_json(reply)
    return reply


def json_request(method: str, url: str, body: object) -> Request:
    """Return a request that carries JSON."""
    content = json.dumps(body).encode()
    return Request(
        method, url, headers={**_JSON, "Content-Type": "application/json"}, content=content
    )
