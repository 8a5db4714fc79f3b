"""Serving: from settings to a process that listens, and stops cleanly."""

from __future__ import annotations

import logging
import math
import signal
import socket
from types import FrameType

import uvicorn

from luma_core.errors import ConfigurationError
from luma_server.app import create_app
from luma_server.http.protocol import protocol
from luma_server.logs import log_to_stderr
from luma_server.settings import Settings

_log = logging.getLogger(__name__)


class _Stopped(BaseException):
    """A signal asked the process to stop."""


class _AnnouncingServer(uvicorn.Server):
    """Prints where it listens once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"LUMA server listening on {self._url}", flush=True)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; to be called in the main thread.

    Prints one line, ``LUMA server listening on http://HOST:PORT``, to stdout once connections are
    accepted. Logs go to stderr.

    Raises:
        ConfigurationError: the address, the root or the file of tokens cannot be used.
        StorageError: no store handles that kind of root.
    """
    app = create_app(settings)
    listener = _listen(settings)
    log_to_stderr()
    config = uvicorn.Config(
        app,
        http=protocol(settings.idle_seconds),
        # Others cannot send a file without copying it.
        loop="asyncio",
        ws="none",
        h11_max_incomplete_event_size=settings.max_header_bytes,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds),
    )
    # uvicorn stops cleanly and then raises the signal again, for whoever handled it before.
    previous = {kind: signal.signal(kind, _stop) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        _AnnouncingServer(config, _url(settings.host, listener)).run(sockets=[listener])
    except _Stopped:
        _log.info("stopped")
    finally:
        listener.close()
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _Stopped


def _listen(settings: Settings) -> socket.socket:
    where = (settings.host, settings.port)
    try:
        family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(where, family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.",
            hint="Choose an address of this machine and a free port, or --port 0.",
        ) from error


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
