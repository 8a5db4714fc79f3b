"""HTTP on a connection: uvicorn's, with files sent by the kernel and time limits."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, BinaryIO, cast

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from luma_server.http.problems import make_problem, problem_response
from luma_server.http.transfer import ZERO_COPY

_SLICE_BYTES = 4 << 20
"""Sent at once; a client must take that much within ``idle_seconds``."""


class FileProtocol(H11Protocol):
    """Knows the ASGI extension ``http.response.zerocopysend``, and ends idle connections.

    Attributes:
        idle_seconds: how long the headers of a request may take, and a piece of a file.
    """

    idle_seconds: float = 30.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inner: Any = self.app
        self.app = cast(Any, self._run)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            # asyncio leaves it out where the listener did not name its protocol; then an answer
            # in two pieces waits for the client's delayed acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None and self.conn.trailing_data[0]:
            self._wait_for_headers()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        answer = problem_response(make_problem(400, msg, "bad_request"))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait_for_headers(self) -> None:
        self._deadline = self.loop.call_later(self.idle_seconds, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("extensions", {})[ZERO_COPY] = {}
        cycle = self.cycle

        async def sending(message: Message) -> None:
            if message["type"] == ZERO_COPY:
                await self._send_file(cycle, message)
            else:
                await send(message)

        await self._inner(scope, receive, sending)

    async def _send_file(self, cycle: RequestResponseCycle, message: Message) -> None:
        file, offset, count = message["file"], message["offset"], message["count"]
        # h11 counts the bytes, so that the length that was promised is kept.
        self.conn.send_with_data_passthrough(h11.Data(data=cast(Any, _Length(count))))
        try:
            await self._send_slices(cycle, file, offset, count)
        except (OSError, TimeoutError, RuntimeError):
            # The client is gone or takes nothing; what it got is told by the length it lacks.
            cycle.disconnected = True
            self.transport.abort()
            return
        await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_slices(
        self, cycle: RequestResponseCycle, file: BinaryIO, offset: int, count: int
    ) -> None:
        end = offset + count
        while offset < end and not cycle.disconnected:
            size = min(_SLICE_BYTES, end - offset)
            if hasattr(os, "posix_fadvise"):
                # The kernel reads ahead while the loop sends, or sending would wait for the disk.
                os.posix_fadvise(file.fileno(), offset, 4 * size, os.POSIX_FADV_WILLNEED)
            async with asyncio.timeout(self.idle_seconds):
                sent = await self.loop.sendfile(self.transport, file, offset, size)
            if sent < size:
                raise OSError("the file got shorter")
            offset += sent


class _Length:
    """Stands for bytes that pass h11 by."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def protocol(idle_seconds: float) -> type[FileProtocol]:
    """Return the protocol with that time limit, for uvicorn's ``http`` option."""
    return type("BoundFileProtocol", (FileProtocol,), {"idle_seconds": idle_seconds})
