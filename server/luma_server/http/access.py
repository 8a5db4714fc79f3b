"""Who may do what, and how much of it."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Depends, Request

from luma_core.errors import ConfigurationError, ServiceError
from luma_server.http.problems import ApiError
from luma_server.http.tokens import SCOPES, Scope, Token, digest, read_tokens, split
from luma_server.settings import Settings, is_loopback

DAY_SECONDS = 86400.0
_NOBODY = digest("")
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="luma"'}


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        id: of the token; empty for anonymous requests.
        scope: what is allowed.
        runs: prefixes of the runs it is allowed for; empty for all.
        requests_per_second: limit; 0 for none.
        upload_bytes_per_day: limit; 0 for none.
    """

    id: str
    scope: Scope
    runs: tuple[str, ...]
    requests_per_second: float
    upload_bytes_per_day: int

    def may_see(self, run: str) -> bool:
        """Whether the run is one of theirs."""
        return not self.runs or run.startswith(self.runs)

    def check_run(self, *runs: str) -> None:
        """Check that runs are theirs.

        Raises:
            ApiError: one is not.
        """
        for run in runs:
            if not self.may_see(run):
                raise ApiError(
                    "forbidden", f"this token is not for run {run!r}.", hint="Ask for one that is."
                )

    def may(self, scope: Scope) -> bool:
        """Whether that scope is allowed."""
        return SCOPES.index(scope) <= SCOPES.index(self.scope)


class Authority:
    """Tells principals by their tokens, and counts what they use. Thread-safe.

    Raises:
        ConfigurationError: the file of tokens cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = settings.tokens_file
        self._read: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._sent: dict[str, tuple[float, int]] = {}
        if self._file is not None:
            self._refresh()

    def identify(self, request: Request) -> Principal:
        """Return who asks, having counted the request.

        Raises:
            ApiError: the token is missing or wrong, or there were too many requests.
        """
        principal = self._anonymous(request) if self._file is None else self._known(request)
        self._count_request(principal)
        request.state.token = principal.id
        return principal

    def _anonymous(self, request: Request) -> Principal:
        host = request.headers.get("Host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        # A page of the web could give its own name this address, and so read what is here.
        if not is_loopback(name):
            raise ApiError(
                "wrong_host", f"this server does not answer for the host {host[:200]!r}."
            )
        settings = self._settings
        limits = (settings.requests_per_second, settings.upload_bytes_per_day)
        return Principal("", "admin", (), *limits)

    def _known(self, request: Request) -> Principal:
        kind, _, text = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text.strip():
            raise ApiError(
                "unauthorized",
                "this server wants a token.",
                hint="Send one: Authorization: Bearer TOKEN.",
                headers=_CHALLENGE,
            )
        self._refresh()
        token_id, secret = split(text.strip()) or ("", "")
        token = self._tokens.get(token_id)
        # Compared in any case, so that the time taken does not tell which ids there are.
        fits = hmac.compare_digest(digest(secret), token.sha256 if token else _NOBODY)
        if token is None or not fits or token.expired(datetime.now(UTC)):
            raise ApiError(
                "unauthorized",
                "the token is unknown, revoked or expired.",
                hint="Ask for a new one: luma token create.",
                headers=_CHALLENGE,
            )
        own_rate, own_bytes = token.requests_per_second, token.upload_bytes_per_day
        settings = self._settings
        return Principal(
            token.id,
            token.scope,
            token.runs,
            settings.requests_per_second if own_rate is None else own_rate,
            settings.upload_bytes_per_day if own_bytes is None else own_bytes,
        )

    def _refresh(self) -> None:
        assert self._file is not None
        try:
            found = self._file.stat()
            identity = (found.st_ino, found.st_mtime_ns, found.st_size)
            if identity != self._read:
                self._tokens = {token.id: token for token in read_tokens(self._file)}
                self._read = identity
        except (OSError, ConfigurationError) as error:
            if self._read is None and isinstance(error, ConfigurationError):
                raise
            raise ServiceError(
                "the tokens of this server cannot be read.", hint="Its operator can mend that."
            ) from error

    def _count_request(self, principal: Principal) -> None:
        rate = principal.requests_per_second
        if not rate:
            return
        with self._lock:
            bucket = self._buckets.setdefault(principal.id, _Bucket(2 * max(rate, 1)))
            wait_seconds = bucket.take(rate, time.monotonic())
        if wait_seconds:
            raise ApiError(
                "rate_limited",
                f"more than {rate:g} requests in a second.",
                hint="Wait a moment.",
                headers={"Retry-After": str(max(1, round(wait_seconds)))},
            )

    def count_upload(self, principal: Principal, count_bytes: int) -> None:
        """Count bytes that are about to be received.

        Raises:
            ApiError: they are more than may be sent in a day.
        """
        limit = principal.upload_bytes_per_day
        if not limit:
            return
        now = time.monotonic()
        with self._lock:
            began, sent = self._sent.get(principal.id, (now, 0))
            if now - began >= DAY_SECONDS:
                began, sent = now, 0
            fits = sent + count_bytes <= limit
            if fits:
                self._sent[principal.id] = (began, sent + count_bytes)
        if not fits:
            left = max(1, round(began + DAY_SECONDS - now))
            raise ApiError(
                "quota_exceeded",
                f"{sent} of {limit} bytes of the day are used up.",
                headers={"Retry-After": str(left)},
            )


class _Bucket:
    """Requests that may be made at once, refilled over time."""

    def __init__(self, capacity: float) -> None:
        self._capacity = self._left = capacity
        self._when = time.monotonic()

    def take(self, rate: float, now: float) -> float:
        """Take one; return how long to wait where there is none."""
        self._left = min(self._capacity, self._left + (now - self._when) * rate)
        self._when = now
        if self._left < 1:
            return (1 - self._left) / rate
        self._left -= 1
        return 0.0


def _required(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    async def identify(request: Request) -> Principal:
        authority: Authority = request.app.state.authority
        principal = authority.identify(request)
        if not principal.may(scope):
            raise ApiError(
                "forbidden",
                f"this token allows {principal.scope!r} only, and {scope!r} is needed.",
            )
        if "run" in request.path_params:
            principal.check_run(request.path_params["run"])
        return principal

    return identify


Reader = Annotated[Principal, Depends(_required("read"))]
Writer = Annotated[Principal, Depends(_required("write"))]
