"""The file of tokens: made by ``luma token``, read by the server, no secret in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from luma_core.checkpoint.storage.names import is_safe_name
from luma_core.direct import opened
from luma_core.errors import ConfigurationError
from luma_core.paths import resolve_path

Scope = Literal["read", "write", "admin"]

SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each holds those before it. ``write`` pushes, deletes, pins, labels and converts; ``admin`` sees
and ends what belongs to other tokens."""

_PREFIX = "luma"
_SECRET_BYTES = 32
_MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Token:
    """One entry of the file.

    Attributes:
        id: names it in lists and logs.
        name: whom or what it is for.
        sha256: of the secret, hex. The secret is 256 random bits, so a plain hash hides it.
        scope: what it allows.
        runs: prefixes of the runs it is for; empty for all.
        created: ISO 8601 in UTC.
        expires: ISO 8601 in UTC; ``None`` for never.
        requests_per_second: limit of its own; ``None`` for the server's.
        upload_bytes_per_day: likewise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    id: str
    name: str
    sha256: str
    scope: Scope
    runs: tuple[str, ...]
    created: str
    expires: str | None = None
    requests_per_second: float | None = None
    upload_bytes_per_day: int | None = None

    def expired(self, now: datetime) -> bool:
        """Whether it works no more."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now


@dataclass(frozen=True)
class _Document:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    version: Literal[1]
    tokens: tuple[Token, ...]


_adapter = TypeAdapter(_Document)


def create_token(
    file: Path,
    *,
    name: str,
    scope: Scope = "read",
    runs: tuple[str, ...] = (),
    expires_seconds: float | None = None,
    requests_per_second: float | None = None,
    upload_bytes_per_day: int | None = None,
) -> tuple[Token, str]:
    """Add a token to a file, which is made where it is missing, readable by its owner only.

    Returns:
        The entry, and the token itself, which is kept nowhere.

    Raises:
        ConfigurationError: an argument cannot work, or the file is none of ours.
    """
    _check(name, runs, expires_seconds)
    now = datetime.now(UTC)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    token = Token(
        id=secrets.token_hex(8),
        name=name,
        sha256=digest(secret),
        scope=scope,
        runs=runs,
        created=_text(now),
        expires=None
        if expires_seconds is None
        else _text(now + timedelta(seconds=expires_seconds)),
        requests_per_second=requests_per_second,
        upload_bytes_per_day=upload_bytes_per_day,
    )
    with _changing(resolve_path(file)) as tokens:
        tokens.append(token)
    return token, f"{_PREFIX}_{token.id}_{secret}"


def _check(name: str, runs: tuple[str, ...], expires_seconds: float | None) -> None:
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise ConfigurationError(f"name={name!r} must be 1 to 200 printable characters.")
    for prefix in runs:
        if not is_safe_name(prefix):
            raise ConfigurationError(f"runs: {prefix!r} cannot be the beginning of a run's name.")
    if expires_seconds is not None and not 0 < expires_seconds < 1e10:
        raise ConfigurationError(f"expires_seconds={expires_seconds} must be above 0.")


def revoke_token(file: Path, token_id: str) -> Token:
    """Remove a token from a file; servers that read it refuse the token from then on.

    Raises:
        ConfigurationError: there is no such token or file.
    """
    file = resolve_path(file)
    read_tokens(file)
    with _changing(file) as tokens:
        found = next((token for token in tokens if token.id == token_id), None)
        if found is None:
            raise ConfigurationError(
                f"there is no token {token_id!r} in {file}.", hint="luma token list shows them."
            )
        tokens.remove(found)
    return found


def read_tokens(file: Path) -> tuple[Token, ...]:
    """Return the tokens in a file.

    Raises:
        ConfigurationError: it is missing or none of ours.
    """
    try:
        with opened(resolve_path(file)) as content:
            return _adapter.validate_json(content.read(_MAX_FILE_BYTES)).tokens
    except OSError as error:
        raise ConfigurationError(
            f"tokens_file {str(file)!r}: {error.strerror}.",
            hint="luma token create makes one.",
        ) from error
    except ValidationError as error:
        raise ConfigurationError(f"tokens_file {str(file)!r} is no file of tokens.") from error


def digest(secret: str) -> str:
    """Return what the file keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split(text: str) -> tuple[str, str] | None:
    """Return id and secret of a token as users have it; ``None`` where it is none."""
    parts = text.split("_", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == _PREFIX else None


@contextmanager
def _changing(file: Path) -> Iterator[list[Token]]:
    """Yield the tokens of a file and write them back, with no other change in between."""
    with _lock(file):
        tokens = list(read_tokens(file)) if file.exists() else []
        yield tokens
        body = json.dumps(asdict(replace(_Document(1, ()), tokens=tuple(tokens))), indent=1) + "\n"
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(body)
            out.flush()
            os.fsync(descriptor)
        temporary.replace(file)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    try:
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"tokens_file {str(file)!r}: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds")
