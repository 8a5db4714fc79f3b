"""Tokens of servers: each belongs to one address, in a file that nobody else can read."""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from urllib.parse import urlsplit

import typer

from luma_core.errors import ConfigurationError

TOKEN_VARIABLE = "LUMA_TOKEN"
"""Environment variable with a token; it is sent to every server, before any other."""


def token_for(base_url: str) -> str:
    """Return the token for a server: that of `TOKEN_VARIABLE`, or the one that was kept.

    Returns:
        The token; empty where there is none.

    Raises:
        ConfigurationError: the file of tokens is not one, or others can read it.
    """
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    return given or _read().get(address_of(base_url), "")


def address_of(base_url: str) -> str:
    """Return what a token is kept under: scheme, host and port of a server."""
    parts = urlsplit(base_url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


def credentials_file() -> Path:
    """Return the file of tokens, which need not exist."""
    return Path(typer.get_app_dir("luma")) / "credentials.json"


def keep_token(base_url: str, token: str | None) -> Path:
    """Keep the token of a server, or forget it where ``token`` is None; return the file.

    Raises:
        ConfigurationError: the file of tokens is not one, or others can read it.
        OSError: it cannot be written.
    """
    file, tokens = credentials_file(), _read()
    if token is None:
        tokens.pop(address_of(base_url), None)
    else:
        tokens[address_of(base_url)] = token
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump({"version": 1, "tokens": tokens}, out, indent=1)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def _read() -> dict[str, str]:
    file = credentials_file()
    try:
        with file.open() as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = json.load(opened)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise _unusable(file, str(error)) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _unusable(file, "others can read it", hint=f"chmod 600 {file}, and take new tokens.")
    tokens = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(tokens, dict) or not all(isinstance(t, str) for t in tokens.values()):
        raise _unusable(file, "it does not hold tokens")
    return tokens


def _unusable(file: Path, why: str, hint: str = "") -> ConfigurationError:
    hint = hint or "Remove it, and log in again: luma login."
    return ConfigurationError(f"the file of tokens {file} cannot be used: {why}.", hint=hint)
