"""A synchronous client of the server's HTTP interface, with typed results and errors."""

from __future__ import annotations

import ipaddress
from typing import Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint import Manifest, check_name, parse_manifest
from luma_core.errors import CheckpointNotFoundError, ConfigurationError, ServiceError
from luma_core.stats import CheckpointStats
from luma_core.wire import (
    CODE_CHECKPOINT_NOT_FOUND,
    PROBLEM_MEDIA_TYPE,
    CheckpointInfo,
    CheckpointList,
    Health,
    Problem,
)

T = TypeVar("T")

_NOT_OURS = "Check that a LUMA server listens at that address."


class Client:
    """Asks one server. Use it as a context manager, or call `close`.

    Args:
        base_url: address of the server, as it prints it: ``http://127.0.0.1:8080``.
        timeout_seconds: how long the server may stay silent; statistics of large checkpoints
            take a while when they are first asked for.
        transport: replaces the network, for tests.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 300.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base = _checked_url(base_url)
        if not timeout_seconds > 0:
            raise ConfigurationError(f"timeout_seconds={timeout_seconds} must be above 0.")
        self._timeout_seconds = timeout_seconds
        self._http = httpx.Client(
            timeout=timeout_seconds,
            transport=transport,
            headers={"Accept": f"application/json, {PROBLEM_MEDIA_TYPE}"},
            # A proxy of the environment cannot reach the loopback address of this machine.
            trust_env=not _is_loopback(self._base.host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> Health:
        """Return the server's own word that it works.

        Raises:
            ServiceError: it does not answer, or with an error.
        """
        return self._ask(Health, "healthz")

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return all committed checkpoints, by run and step; damaged ones have an ``error``.

        Raises:
            ServiceError: the server does not answer, or with an error.
        """
        return list(self._ask(CheckpointList, "v1", "checkpoints").checkpoints)

    def checkpoint(self, run: str, step: str) -> Manifest:
        """Return the manifest of a checkpoint, its checksum checked.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
            CorruptCheckpointError: what arrived is not the manifest that was written.
            UnsupportedVersionError: a newer version wrote it.
            ServiceError: the server does not answer, or with an error.
        """
        url = self._url("v1", "checkpoints", check_name(run), check_name(step))
        response = self._get(url)
        _require_json(response, url)
        return parse_manifest(response.content, where=url)

    def stats(self, run: str, step: str, pattern: str | None = None) -> CheckpointStats:
        """Return the statistics of a checkpoint.

        Args:
            run: name of the run.
            step: name of the step.
            pattern: shell pattern that chooses parameters by name; ``None`` takes all.

        Raises:
            UnsafeNameError: a name is not a safe path component.
            CheckpointNotFoundError: there is no such checkpoint.
            ServiceError: the server does not answer, or with an error.
        """
        names = ("v1", "checkpoints", check_name(run), check_name(step), "stats")
        return self._ask(
            CheckpointStats, *names, params={} if pattern is None else {"param": pattern}
        )

    def _url(self, *parts: str) -> str:
        return "/".join((str(self._base).rstrip("/"), *parts))

    def _ask(self, kind: type[T], *parts: str, params: dict[str, str] | None = None) -> T:
        url = self._url(*parts)
        response = self._get(url, params)
        _require_json(response, url)
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the answer"
            raise ServiceError(
                f"{url}: the answer is not understood: {place}: {first['msg']}.",
                hint=_NOT_OURS,
                status=response.status_code,
            ) from error

    def _get(self, url: str, params: dict[str, str] | None = None) -> httpx.Response:
        try:
            response = self._http.get(url, params=params)
        except httpx.TimeoutException as error:
            raise ServiceError(
                f"{url}: no answer within {self._timeout_seconds:g} s.",
                hint="Try again, or raise timeout_seconds.",
            ) from error
        except httpx.ConnectError as error:
            raise ServiceError(
                f"{url}: cannot connect: {error}.",
                hint="Check the address, and that the server runs: luma serve --root DIR.",
            ) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServiceError(f"{url}: {reason}.", hint=_NOT_OURS) from error
        if response.status_code != 200:
            raise _error_of(response, url)
        return response


def _error_of(response: httpx.Response, url: str) -> CheckpointNotFoundError | ServiceError:
    status = response.status_code
    problem = _problem_of(response)
    if problem is None:
        return ServiceError(f"{url}: the server answered {status}.", hint=_NOT_OURS, status=status)
    message = f"{url}: {problem.detail}"
    if problem.code == CODE_CHECKPOINT_NOT_FOUND:
        return CheckpointNotFoundError(message, hint="Ask for the list of checkpoints.")
    hint = problem.hint
    if status >= 500 and problem.request_id:
        hint = f"{hint} The server's log has more under request {problem.request_id}.".lstrip()
    return ServiceError(message, hint=hint, status=status)


def _problem_of(response: httpx.Response) -> Problem | None:
    if _media_type(response) != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return TypeAdapter(Problem).validate_json(response.content)
    except ValidationError:
        return None


def _require_json(response: httpx.Response, url: str) -> None:
    kind = _media_type(response)
    if kind != "application/json":
        raise ServiceError(
            f"{url}: the answer is {kind or 'of no known type'}, not JSON.",
            hint=_NOT_OURS,
            status=response.status_code,
        )


def _media_type(response: httpx.Response) -> str:
    kind: str = response.headers.get("Content-Type", "")
    return kind.partition(";")[0].strip().lower()


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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
