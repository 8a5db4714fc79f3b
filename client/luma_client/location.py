"""Where a server and what it keeps are: the ``luma://`` URLs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import SplitResult, urlsplit

from luma_core.checkpoint.storage.names import check_name
from luma_core.errors import ConfigurationError

DEFAULT_PORT = 8000
"""Of ``luma serve``; taken for URLs that are reached over plain HTTP and name no port."""

PROTOCOLS = ("luma", "luma+http")
"""Schemes of URLs that name a checkpoint on a server."""

_HINT = "Write luma://HOST[:PORT]/RUN/STEP."


@dataclass(frozen=True)
class Location:
    """A place on a server.

    ``luma://`` is HTTP for loopback addresses and HTTPS for all others; ``luma+http://`` is always
    plain HTTP, which anybody on the way can read, tokens included.

    Attributes:
        scheme: one of `PROTOCOLS`.
        netloc: host, and port where the URL names one.
        names: run, step and file, as many as there are, each a safe name.
    """

    scheme: str
    netloc: str
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the place that a URL names.

        Args:
            url: ``luma://host[:port][/run[/step[/file]]]``, or the same with ``luma+http``.

        Raises:
            ConfigurationError: it is no such URL.
            UnsafeNameError: a part of it is not a safe name.
        """
        told = f"{url!r} does not name a place on a server"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"{told}: {error}.", hint=_HINT) from error
        if parts.scheme not in PROTOCOLS or not host:
            raise ConfigurationError(f"{told}.", hint=_HINT)
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigurationError(
                f"{told}: it has a query, a fragment or a user.",
                hint=f"{_HINT} A token comes from `luma login` or LUMA_TOKEN.",
            )
        names = parts.path.strip("/")
        found = tuple(check_name(name) for name in names.split("/")) if names else ()
        return cls(parts.scheme, parts.netloc.lower(), found)

    @property
    def base_url(self) -> str:
        """Address of the server: ``http://host:port`` or ``https://host[:port]``."""
        parts = self._parts()
        secure = self.scheme == "luma" and not is_loopback(parts.hostname or "")
        port = "" if secure or parts.port is not None else f":{DEFAULT_PORT}"
        return f"{'https' if secure else 'http'}://{self.netloc}{port}"

    def _parts(self) -> SplitResult:
        return urlsplit(f"//{self.netloc}")

    def __truediv__(self, name: str) -> Self:
        """Return the place of that name inside this one.

        Raises:
            UnsafeNameError: it is not a safe name.
        """
        return replace(self, names=(*self.names, check_name(name)))

    def __str__(self) -> str:
        return "/".join((f"{self.scheme}://{self.netloc}", *self.names))

    def checkpoint(self) -> tuple[str, str]:
        """Return run and step.

        Raises:
            ConfigurationError: the place is not that of a checkpoint.
        """
        if len(self.names) != 2:
            raise ConfigurationError(
                f"{str(self)!r} does not name a checkpoint: it must have a run and a step.",
                hint=_HINT,
            )
        return self.names[0], self.names[1]


def is_place_on_server(place: object) -> bool:
    """Return whether ``place`` is a URL with one of our schemes."""
    return isinstance(place, str) and place.partition("://")[0].lower() in PROTOCOLS


def is_loopback(host: str) -> bool:
    """Return whether only this machine can be behind ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
