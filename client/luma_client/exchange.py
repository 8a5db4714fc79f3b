"""Asking the server until it answers: which failures pass, and what the others mean."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from luma_client.effects import BrokenError, Reply, Request, Sleep, Steps
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ConfigurationError,
    CorruptCheckpointError,
    LumaError,
    ServiceError,
    UnsafeNameError,
)
from luma_core.wire import CODE_CHECKPOINT_NOT_FOUND, PROBLEM_MEDIA_TYPE, Problem

T = TypeVar("T")

NOT_OURS = "Check that a LUMA server listens at that address."

_PASSING: Final = frozenset({429, 502, 503, 504})
"""Statuses that another try may not see."""

_LOGIN = "Give a token: luma login {base}, or the variable LUMA_TOKEN."

_UNEXPLAINED = {401: "it wants a token", 403: "the token does not allow that"}
"""Answers to HEAD have no body that says why."""

_KINDS: dict[str, type[LumaError]] = {
    "checkpoint_changed": ConcurrentSaveError,
    "checkpoint_exists": CheckpointExistsError,
    "corrupt_checkpoint": CorruptCheckpointError,
    "digest_mismatch": CorruptCheckpointError,
    "unsafe_name": UnsafeNameError,
}
"""What a problem's code becomes on this side; all others become `ServiceError`."""

_PASSING_CODES = frozenset({"commit_in_progress", "upload_too_slow"})


@dataclass(frozen=True)
class Retries:
    """How often, and after which waits, what may pass is tried again.

    That is: broken connections, refused ones once the server has answered anything, the statuses
    429, 502, 503 and 504, and with them the server's ``Retry-After``. Whatever arrives meanwhile,
    such as a part of a file, starts the count anew.

    Args:
        attempts: tries in all.
        first_wait_seconds: before the second try; doubles each time.
        longest_wait_seconds: bound on a wait, a ``Retry-After`` included: where the server asks for
            more, its answer is final.

    Raises:
        ConfigurationError: a value cannot work.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 15.0

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigurationError(f"attempts={self.attempts!r} must be an integer above 0.")
        for name in ("first_wait_seconds", "longest_wait_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} must be 0 or more.")

    def waits(self) -> Iterator[float | None]:
        """Yield the wait after each try, by chance up to half less; None after the last."""
        for attempt in range(self.attempts - 1):
            wait = min(self.first_wait_seconds * 2**attempt, self.longest_wait_seconds)
            yield wait * random.uniform(0.5, 1)
        yield None


class Endpoint:
    """What is known about the server.

    Attributes:
        base: its address, without a slash at the end.
        timeout_seconds: how long it may be silent.
        retries: how often it is asked again.
        reached: whether it has answered anything yet.
    """

    def __init__(self, base: str, *, timeout_seconds: float, retries: Retries) -> None:
        self.base = base
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.reached = False

    def url(self, *parts: str) -> str:
        """Return the address of a resource."""
        return "/".join((self.base, *parts))

    def may_pass(self, error: BrokenError) -> bool:
        """Return whether another try may succeed."""
        return error.kind == "broken" or (error.kind == "connect" and self.reached)

    def told(self, url: str, error: BrokenError) -> ServiceError:
        """Return the error that says that no answer came."""
        if error.kind == "timeout":
            return ServiceError(
                f"{url}: no answer within {self.timeout_seconds:g} s.",
                hint="Try again, or raise timeout_seconds.",
            )
        if error.kind == "connect":
            return ServiceError(
                f"{url}: cannot connect: {error.reason}.",
                hint="Check the address, and that the server runs: luma serve.",
            )
        return ServiceError(f"{url}: {error.reason}.", hint=NOT_OURS)


def exchange(
    endpoint: Endpoint,
    request: Request,
    *,
    accept: Collection[int] = (200,),
    retries: Retries | None = None,
) -> Steps[Reply]:
    """Send a request until an answer counts.

    Args:
        endpoint: the server.
        request: may be sent several times.
        accept: statuses of answers that are returned.
        retries: how often; by default as the endpoint says.

    Raises:
        LumaError: the answer is another, or none came; see `error_of`.
    """
    retries = retries or endpoint.retries
    for wait in retries.waits():
        try:
            reply: Reply = yield request
        except BrokenError as error:
            if wait is None or not endpoint.may_pass(error):
                raise endpoint.told(request.url, error) from error
            yield Sleep(wait)
            continue
        endpoint.reached = True
        if reply.status in accept:
            return reply
        pause = wait_for(reply, wait, retries)
        if pause is None:
            raise error_of(reply, endpoint)
        yield Sleep(pause)
    raise AssertionError("the last wait is None")


def wait_for(reply: Reply, wait: float | None, retries: Retries) -> float | None:
    """Return how long to wait before asking again, or None where the answer is final."""
    if wait is None:
        return None
    if reply.status not in _PASSING:
        problem = problem_of(reply)
        return wait if problem is not None and problem.code in _PASSING_CODES else None
    asked = _retry_after_seconds(reply.headers.get("Retry-After"))
    return max(wait, asked) if asked <= retries.longest_wait_seconds else None


def _retry_after_seconds(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, which may hold a date."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return 0.0


def error_of(reply: Reply, endpoint: Endpoint) -> LumaError:
    """Return the error that an answer stands for."""
    problem = problem_of(reply)
    login = _LOGIN.format(base=endpoint.base) if reply.status == 401 else ""
    if problem is None:
        why = _UNEXPLAINED.get(reply.status)
        told = f"{reply.url}: the server answered {reply.status}{f': {why}' if why else ''}."
        return ServiceError(told, hint=login or NOT_OURS, status=reply.status)
    message = f"{reply.url}: {problem.detail}"
    if problem.code == CODE_CHECKPOINT_NOT_FOUND:
        return CheckpointNotFoundError(
            message, hint=f"luma ls {endpoint.base} lists those there are."
        )
    kind = _KINDS.get(problem.code)
    if kind is not None and reply.status < 500:
        return kind(message, hint=problem.hint)
    hint = login or problem.hint
    if reply.status >= 500 and problem.request_id:
        hint = f"{hint} The server's log has more under request {problem.request_id}.".lstrip()
    return ServiceError(message, hint=hint, status=reply.status)


def problem_of(reply: Reply) -> Problem | None:
    """Return the problem in an answer's body, or None where there is none."""
    if reply.media_type != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return TypeAdapter(Problem).validate_json(reply.content)
    except ValidationError:
        return None


def require_json(reply: Reply) -> None:
    """Check that an answer says that it is JSON.

    Raises:
        ServiceError: it does not.
    """
    if reply.media_type != "application/json":
        raise ServiceError(
            f"{reply.url}: the answer is {reply.media_type or 'of no known type'}, not JSON.",
            hint=NOT_OURS,
            status=reply.status,
        )


def parsed(kind: type[T], reply: Reply) -> T:
    """Return the value in an answer's body; fields that are not known here are ignored.

    Raises:
        ServiceError: it is no such value.
    """
    require_json(reply)
    try:
        return TypeAdapter(kind).validate_json(reply.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise ServiceError(
            f"{reply.url}: the answer is not understood: {place}: {first['msg']}.",
            hint=NOT_OURS,
            status=reply.status,
        ) from error
