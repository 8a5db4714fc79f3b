"""One part: from the connection to the staging area, in bounded memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from luma_core.checkpoint.steps import STEP_NAME
from luma_server.http.access import Authority, Principal
from luma_server.http.problems import ApiError
from luma_server.settings import Settings
from luma_server.uploads.record import Record
from luma_server.uploads.sessions import Sessions, is_wanted
from luma_server.uploads.staging import PartWriter, StagingArea, UploadPart

MAX_PART_NUMBER = 999_999

_BUFFER_BYTES = 1 << 20
_SLOWEST_BYTES_PER_SECOND = 32 << 10
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:,|$)")


class Receiver:
    """Receives parts, a bounded number at a time; belongs to one event loop.

    Args:
        sessions: what they belong to.
        authority: counts bytes.
        settings: limits.
    """

    def __init__(self, sessions: Sessions, authority: Authority, settings: Settings) -> None:
        self._sessions = sessions
        self._authority = authority
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.parts_at_once)
        self._locks: dict[tuple[str, str, int], tuple[asyncio.Lock, int]] = {}

    async def receive(
        self, request: Request, principal: Principal, record: Record, name: str, number: int
    ) -> None:
        """Take a part; does nothing where it has arrived before.

        Raises:
            ApiError: it is not what was announced, or took too long.
        """
        part = _announced(request, record, name, number)
        end = (number - 1) * record.part_bytes + part.size_bytes
        if end > self._settings.max_upload_bytes:
            raise ApiError("too_large", f"at most {self._settings.max_upload_bytes} bytes.")
        self._authority.count_upload(principal, part.size_bytes)
        staging = self._sessions.staging(record)
        seconds = self._settings.idle_seconds + part.size_bytes / _SLOWEST_BYTES_PER_SECOND
        with self._sessions.receiving(record):
            async with self._one_at_a_time((record.id, name, number)), self._slots:
                known = await run_sync(staging.parts, name)
                if known.get(number) == part:
                    return
                try:
                    async with asyncio.timeout(seconds):
                        await _take(request, staging, name, part)
                except TimeoutError as error:
                    raise ApiError(
                        "upload_too_slow", f"the part took longer than {seconds:.0f} s."
                    ) from error

    @asynccontextmanager
    async def _one_at_a_time(self, key: tuple[str, str, int]) -> AsyncIterator[None]:
        lock, waiting = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._locks[key]
            if waiting == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, waiting - 1)


async def _take(request: Request, staging: StagingArea, name: str, part: UploadPart) -> None:
    writer = await run_sync(staging.begin, name, part)
    hashed = hashlib.sha256()
    count = 0

    def keep(data: bytes, out: PartWriter = writer) -> None:
        hashed.update(data)
        out.write(data)

    try:
        async for data in _buffered(request):
            count += len(data)
            await run_sync(keep, data)
        if count != part.size_bytes:
            raise ApiError("bad_request", f"{count} bytes arrived of {part.size_bytes}.")
        if hashed.hexdigest() != part.sha256:
            raise ApiError(
                "digest_mismatch",
                "the part's SHA-256 is not that of Content-Digest.",
                hint="Send it again.",
            )
        await run_sync(writer.commit)
    except ClientDisconnect as error:
        raise ApiError("bad_request", "the connection ended within the part.") from error
    finally:
        await asyncio.shield(run_sync(writer.discard))


async def _buffered(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in larger pieces than it comes in."""
    pieces: list[bytes] = []
    size = 0
    async for data in request.stream():
        pieces.append(data)
        size += len(data)
        if size >= _BUFFER_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    if size:
        yield b"".join(pieces)


def _announced(request: Request, record: Record, name: str, number: int) -> UploadPart:
    if not is_wanted(record, name):
        raise ApiError("file_not_found", f"the upload wants no parts of {name!r}.")
    length = request.headers.get("Content-Length")
    if length is None:
        raise ApiError("length_required", "a part needs a Content-Length.")
    size = int(length)
    if size > record.part_bytes:
        raise ApiError("too_large", f"a part of {size} bytes; at most {record.part_bytes}.")
    declared = record.declared(name)
    if declared is not None:
        begin = (number - 1) * record.part_bytes
        expected = min(record.part_bytes, declared.size_bytes - begin)
        if size != expected or (expected == 0 and number != 1):
            raise ApiError(
                "invalid_request",
                f"part {number} of {name!r} has {max(0, expected)} bytes, not {size}.",
            )
    elif name == STEP_NAME and number != 1:
        raise ApiError("invalid_request", f"{name} has one part.")
    return UploadPart(number, size, _digest(request))


def _digest(request: Request) -> str:
    found = _DIGEST.search(request.headers.get("Content-Digest", ""))
    if found is None:
        raise ApiError(
            "invalid_request",
            "header.Content-Digest: it must hold the SHA-256 of the body.",
            hint="Content-Digest: sha-256=:BASE64: (RFC 9530)",
        )
    try:
        return base64.b64decode(found[1], validate=True).hex()
    except binascii.Error as error:
        raise ApiError("invalid_request", "header.Content-Digest: not base64.") from error
