"""Whole checkpoints to the server: sessions, parts, and what is done when they are lost."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

from luma_client.effects import Buffers, Reply, Request, Steps, Work, in_lanes
from luma_client.exchange import Endpoint, Retries, error_of, exchange, parsed, problem_of
from luma_client.operation import Operation
from luma_client.queries import get, json_request
from luma_core.checkpoint.format import parse_manifest
from luma_core.checkpoint.storage import check_name
from luma_core.errors import (
    CheckpointExistsError,
    ConcurrentSaveError,
    CorruptCheckpointError,
    LumaError,
)
from luma_core.wire import (
    PROBLEM_MEDIA_TYPE,
    Committed,
    UploadFile,
    UploadList,
    UploadSession,
)

LANES = 4
"""Parts of files that are on their way, or held, at a time."""

ROUNDS = 3
"""How often an upload is begun anew where the server lost its session, or parts of it."""

_LOST_CODES: Final = frozenset({"upload_not_found", "upload_incomplete"})
"""The server has not, or not any more, what it was sent."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


class Readable(Protocol):
    """What an upload reads; every `luma_core.checkpoint.storage.store.Store` is that."""

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Read the bytes of a file from ``start`` on into ``out``; return how many there were."""


class Uploads:
    """Mixed into a runner.

    Attributes:
        endpoint: the server.
    """

    endpoint: Endpoint

    @Operation
    def upload(
        self,
        source: Readable,
        manifest: bytes,
        run: str,
        step: str,
        *,
        beside: dict[str, bytes] | None = None,
        overwrite: bool = False,
        expected: str | None = None,
        resumable: bool = True,
        progress: Progress | None = None,
    ) -> Steps[Committed]:
        """Send the files of a checkpoint and make it visible, whole.

        What the server has already, of this checkpoint or any other, is not sent again; so after
        an interruption, the same call goes on where it was.

        Args:
            source: holds the files that the manifest names.
            manifest: content of ``luma.json``.
            run: where to; name of the run.
            step: likewise; name of the step.
            beside: small files that no manifest names, whole.
            overwrite: whether to replace a checkpoint that is there.
            expected: digest of the manifest that may be replaced; any, by default.
            resumable: whether, after an interruption, the server keeps what it was sent for a day.
            progress: called with bytes that the server has, and in total, from one thread.

        Raises:
            CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
            ConcurrentSaveError: another one than ``expected`` is there.
            CorruptCheckpointError: ``manifest`` is none, or a file is not what it says.
            ServiceError: the server does not answer, or with an error.
        """
        work = _Upload(
            self.endpoint,
            source,
            manifest,
            (check_name(run), check_name(step)),
            beside=beside or {},
            overwrite=overwrite,
            expected=expected,
            resumable=resumable,
            progress=progress,
        )
        return (yield from work.run_through())


class _LostError(Exception):
    """The server has not what it was sent, or not any more.

    Attributes:
        told: what to tell if that goes on.
    """

    def __init__(self, told: LumaError) -> None:
        super().__init__(told.message)
        self.told = told


class _Upload:
    """One upload."""

    def __init__(
        self,
        endpoint: Endpoint,
        source: Readable,
        manifest: bytes,
        place: tuple[str, str],
        *,
        beside: dict[str, bytes],
        overwrite: bool,
        expected: str | None,
        resumable: bool,
        progress: Progress | None,
    ) -> None:
        self._endpoint = endpoint
        self._source = source
        self._text = manifest.decode()
        self._files = {file.name: file for file in parse_manifest(manifest).files}
        self._place = place
        self._beside = beside
        self._overwrite = overwrite
        self._expected = expected
        self._resumable = resumable
        self._progress = progress
        self._total_bytes = sum(file.bytes for file in self._files.values())
        self._done_bytes = 0

    def run_through(self) -> Steps[Committed]:
        """Send and commit, again where the server lost what it had."""
        for rounds_left in reversed(range(ROUNDS)):
            session = yield from self._session()
            try:
                yield from self._send(session)
                return (yield from self._commit(session))
            except _LostError as lost:
                if not rounds_left:
                    raise lost.told from lost
            except GeneratorExit:
                raise
            except BaseException as error:
                if not self._resumable or _is_vain(error):
                    yield from self._abandon(session)
                raise
        raise AssertionError("the last round returns or raises")

    def _url(self, *parts: str) -> str:
        return self._endpoint.url("v1", "uploads", *parts)

    def _session(self) -> Steps[UploadSession]:
        """Return an open session: that of an upload that was interrupted, or a new one."""
        known = yield from self._interrupted()
        if known is not None:
            return known
        run, step = self._place
        body = {"run": run, "step": step, "manifest": self._text, "overwrite": self._overwrite}
        if self._expected is not None:
            body["expected"] = self._expected
        request = json_request("POST", self._url(), body)
        reply = yield from exchange(self._endpoint, request, accept=(200, 201))
        return parsed(UploadSession, reply)

    def _interrupted(self) -> Steps[UploadSession | None]:
        # A session does not tell what it may replace, so only the plain case is resumed.
        if self._overwrite or not self._resumable:
            return None
        wanted = {(file.name, file.sha256) for file in self._files.values()}
        for session in parsed(UploadList, (yield from get(self._endpoint, "v1", "uploads"))).items:
            listed = {(file.name, file.sha256) for file in session.files}
            here = (session.run, session.step) == self._place and session.state == "open"
            if here and wanted == listed and not (yield from self._is_taken()):
                return session
        return None

    def _is_taken(self) -> Steps[bool]:
        request = Request("HEAD", self._endpoint.url("v1", "checkpoints", *self._place))
        reply: Reply = yield from exchange(self._endpoint, request, accept=(200, 404))
        return reply.status == 200

    def _send(self, session: UploadSession) -> Steps[None]:
        missing = [
            (file, number)
            for file in session.files
            if file.needed
            for number in _parts(file, session.part_bytes)
        ]
        size = session.part_bytes
        absent_bytes = sum(_part_size(file, number, size) for file, number in missing)
        yield from self._tell(self._total_bytes - absent_bytes)
        for name, content in self._beside.items():
            yield from self._put(session, name, 1, partial(_whole, content))
        buffers = Buffers(size)
        works = (
            partial(self._send_part, session, file, number, buffers) for file, number in missing
        )
        yield from in_lanes(works, self._count, lanes=LANES)

    def _count(self, sent_bytes: int) -> Steps[None]:
        yield from self._tell(self._done_bytes + sent_bytes)

    def _tell(self, done_bytes: int) -> Steps[None]:
        self._done_bytes = done_bytes
        if self._progress is not None:
            yield Work(partial(self._progress, done_bytes, self._total_bytes))

    def _send_part(
        self, session: UploadSession, file: UploadFile, number: int, buffers: Buffers
    ) -> Steps[int]:
        start = (number - 1) * session.part_bytes
        size = _part_size(file, number, session.part_bytes)
        data = buffers.take(size)

        def read() -> memoryview:
            count = self._source.read_into(file.name, start, data)
            if count != size:
                raise CorruptCheckpointError(
                    f"{file.name}: the file ends at byte {start + count}, before the "
                    f"{file.size_bytes} bytes that the manifest gives it."
                )
            return data

        yield from self._put(session, file.name, number, read)
        buffers.give_back(data)
        return size

    def _put(
        self, session: UploadSession, name: str, number: int, read: Callable[[], memoryview]
    ) -> Steps[None]:
        url = self._url(session.id, "files", name, "parts", str(number))

        def request() -> Request:
            content = read()
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            headers = {
                "Accept": PROBLEM_MEDIA_TYPE,
                "Content-Digest": f"sha-256=:{digest}:",
                "Content-Type": "application/octet-stream",
            }
            return Request("PUT", url, headers=headers, content=content)

        ready: Request = yield Work(request)
        for _ in range(ROUNDS):
            reply = yield from exchange(self._endpoint, ready, accept=(200, 201, 204, 404, 422))
            if reply.status in (200, 201, 204):
                return
            # A digest that is wrong over there shows damage on the way: the part is sent again.
            if _code(reply) != "digest_mismatch":
                raise self._lost_or_told(reply)
        raise error_of(reply, self._endpoint)

    def _commit(self, session: UploadSession) -> Steps[Committed]:
        request = json_request("POST", self._url(session.id, "commit"), {})
        reply = yield from exchange(self._endpoint, request, accept=(200, 201, 404, 409, 422))
        if reply.status in (200, 201):
            return parsed(Committed, reply)
        raise self._lost_or_told(reply)

    def _lost_or_told(self, reply: Reply) -> Exception:
        told = error_of(reply, self._endpoint)
        return _LostError(told) if _code(reply) in _LOST_CODES else told

    def _abandon(self, session: UploadSession) -> Steps[None]:
        request = Request("DELETE", self._url(session.id))
        # What ended the upload is told, whether or not the server hears of it.
        with contextlib.suppress(LumaError):
            once = Retries(attempts=1)
            yield from exchange(self._endpoint, request, accept=(200, 204, 404), retries=once)


def _is_vain(error: BaseException) -> bool:
    """Whether the session can never be committed."""
    return isinstance(error, CheckpointExistsError | ConcurrentSaveError)


def _whole(content: bytes) -> memoryview:
    return memoryview(content)


def _parts(file: UploadFile, part_bytes: int) -> Iterator[int]:
    """Yield the numbers of the parts that the server lacks; an empty file has one."""
    count = max(1, -(-(file.size_bytes or 0) // part_bytes))
    received = set(file.received)
    return (number for number in range(1, count + 1) if number not in received)


def _part_size(file: UploadFile, number: int, part_bytes: int) -> int:
    return max(0, min(part_bytes, (file.size_bytes or 0) - (number - 1) * part_bytes))


def _code(reply: Reply) -> str:
    problem = problem_of(reply)
    return "" if problem is None else problem.code
