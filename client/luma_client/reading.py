"""Files of a checkpoint on the server: ranges of them, whatever breaks on the way."""

from __future__ import annotations

from collections.abc import Mapping

from luma_client.effects import BrokenError, Reply, Request, Sleep, Steps, Take
from luma_client.exchange import NOT_OURS, Endpoint, error_of, problem_of, wait_for
from luma_client.operation import Operation
from luma_client.queries import place
from luma_core.checkpoint.storage import check_name
from luma_core.errors import CheckpointNotFoundError, CorruptCheckpointError, ServiceError

_WHOLE, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416


class Reading:
    """Mixed into a runner.

    Attributes:
        endpoint: the server.
    """

    endpoint: Endpoint

    @Operation
    def read(self, run: str, step: str, name: str, start: int, stop: int) -> Steps[bytes]:
        """Return the bytes ``[start, stop)`` of a file, fewer where it ends before.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint or file.
            CorruptCheckpointError: the file was replaced meanwhile.
            ServiceError: the server does not answer, or with an error.
        """
        out = bytearray(max(0, stop - start))
        count = yield from read_into(self.endpoint, run, step, name, start, memoryview(out))
        return bytes(memoryview(out)[:count])

    @Operation
    def read_into(self, run: str, step: str, name: str, start: int, out: memoryview) -> Steps[int]:
        """Read the bytes of a file from ``start`` on into ``out``; return how many there were.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint or file.
            CorruptCheckpointError: the file was replaced meanwhile.
            ServiceError: the server does not answer, or with an error.
        """
        return (yield from read_into(self.endpoint, run, step, name, start, out))


class _Range:
    """The bytes ``[start, start + len(out))`` of a file, as far as they arrived."""

    def __init__(self, url: str, start: int, out: memoryview) -> None:
        self.url = url
        self.start = start
        self.out = out
        self.done = 0
        self._tag = ""

    def request(self) -> Request:
        """Return the request for what is missing, if the file is still the same."""
        first, last = self.start + self.done, self.start + len(self.out) - 1
        headers = {"Range": f"bytes={first}-{last}"}
        if self._tag:
            headers["If-Range"] = self._tag
        return Request("GET", self.url, headers=headers, body_to=self._body_to)

    def _body_to(self, status: int, headers: Mapping[str, str]) -> Take | None:
        if status == _WHOLE and headers.get("Content-Length") != "0":
            raise self._other_file() if self._tag else self._no_ranges()
        if status != _PARTIAL:
            return None
        first = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if first != str(self.start + self.done):
            raise ServiceError(f"{self.url}: the answer is of another range.", status=status)
        self._tag = headers.get("ETag", "")
        return self._take

    def _other_file(self) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.url}: the file was replaced while it was read.", hint="Read it again."
        )

    def _no_ranges(self) -> ServiceError:
        return ServiceError(
            f"{self.url}: the server answers no ranges.", hint=NOT_OURS, status=_WHOLE
        )

    def _take(self, piece: bytes) -> None:
        stop = self.done + len(piece)
        if stop > len(self.out):
            raise ServiceError(f"{self.url}: the answer is longer than the range asked for.")
        self.out[self.done : stop] = piece
        self.done = stop


def read_into(
    endpoint: Endpoint, run: str, step: str, name: str, start: int, out: memoryview
) -> Steps[int]:
    """Read a file's bytes from ``start`` on; after a broken connection, only what is missing.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint or file.
        CorruptCheckpointError: the file was replaced meanwhile.
        ServiceError: the server does not answer, or with an error.
    """
    url = endpoint.url(*place(run, step), "files", check_name(name))
    return (yield from read_url_into(endpoint, url, start, out))


def read_url_into(endpoint: Endpoint, url: str, start: int, out: memoryview) -> Steps[int]:
    """Read the bytes behind an address like `read_into`."""
    wanted = _Range(url, start, out)
    waits = endpoint.retries.waits()
    while out:
        before = wanted.done
        wait = next(waits)
        try:
            reply: Reply = yield wanted.request()
        except BrokenError as error:
            if wanted.done > before:
                # What arrives shows that the server works.
                endpoint.reached = True
                waits = endpoint.retries.waits()
                wait = next(waits)
            if wait is None or not endpoint.may_pass(error):
                raise endpoint.told(url, error) from error
            yield Sleep(wait)
            continue
        endpoint.reached = True
        if reply.status in (_WHOLE, _PARTIAL, _NOT_SATISFIABLE):
            break
        pause = wait_for(reply, wait, endpoint.retries)
        if pause is None:
            raise _missing(reply) if reply.status == 404 else error_of(reply, endpoint)
        yield Sleep(pause)
    return wanted.done


def _missing(reply: Reply) -> CheckpointNotFoundError:
    problem = problem_of(reply)
    detail = "there is no such file." if problem is None else problem.detail
    return CheckpointNotFoundError(f"{reply.url}: {detail}")
