"""Clients of the server's HTTP interface, with typed results and errors."""

from __future__ import annotations

from typing import Any

import httpx

from luma_client.analyses import Analyses
from luma_client.credentials import token_for
from luma_client.downloads import Downloads
from luma_client.exchange import Endpoint, Retries
from luma_client.location import is_loopback
from luma_client.queries import Queries
from luma_client.reading import Reading
from luma_client.runners import AsyncRunner, SyncRunner
from luma_client.uploads import Uploads
from luma_core.errors import ConfigurationError


class _Operations(Queries, Reading, Analyses, Uploads, Downloads):
    """All that a server can be asked."""


class Client(SyncRunner, _Operations):
    """Asks one server. Use it as a context manager, or call `close`.

    Its methods may be called from several threads at once.

    Args:
        base_url: address of the server, as it prints it: ``http://127.0.0.1:8080``.
        token: sent with every request; by default that of LUMA_TOKEN or ``luma login``, and none
            where it is empty.
        timeout_seconds: how long the server may stay silent; statistics of large checkpoints
            take a while when they are first asked for.
        retries: how often it is asked again.
        transport: replaces the network, for tests.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.endpoint, options = _connection(base_url, token, timeout_seconds, retries)
        super().__init__(transport, options)


class AsyncClient(AsyncRunner, _Operations):
    """Asks one server without blocking: what `Client` returns is awaited here.

    Use it as an asynchronous context manager, or await `close`.

    Args:
        base_url: as for `Client`.
        token: as for `Client`.
        timeout_seconds: as for `Client`.
        retries: as for `Client`.
        transport: replaces the network, for tests.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.endpoint, options = _connection(base_url, token, timeout_seconds, retries)
        super().__init__(transport, options)


def _connection(
    base_url: str, token: str | None, timeout_seconds: float, retries: Retries | None
) -> tuple[Endpoint, dict[str, Any]]:
    """Return what is asked, and the options of httpx for it."""
    base = _checked_url(base_url)
    if not timeout_seconds > 0:
        raise ConfigurationError(f"timeout_seconds={timeout_seconds} must be above 0.")
    address = str(base).rstrip("/")
    endpoint = Endpoint(address, timeout_seconds=timeout_seconds, retries=retries or Retries())
    # Bodies come as they are stored: ranges of them are asked for, and their sizes are limited.
    headers = {"Accept-Encoding": "identity"}
    if told := _token(base, token):
        headers["Authorization"] = f"Bearer {told}"
    options = {
        "timeout": timeout_seconds,
        "headers": headers,
        # A proxy of the environment cannot reach the loopback address of this machine.
        "trust_env": not is_loopback(base.host),
    }
    return endpoint, options


def _token(base: httpx.URL, given: str | None) -> str:
    token = token_for(str(base)) if given is None else given
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            "token= must be printable ASCII without spaces; its value is not shown here.",
            hint="Take it as the server printed it.",
        )
    return token


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"base_url={base_url!r} is not a URL: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ConfigurationError(
            f"base_url={base_url!r} must begin with http:// or https:// and name a host.",
            hint="Give it as the server prints it: http://127.0.0.1:8080.",
        )
    return url
