"""Everything about the server that can be set."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from luma_core.checkpoint.storage.local import is_local, local_path
from luma_core.errors import ConfigurationError
from luma_core.paths import resolve_path
from luma_server.catalog.place import check_folder

_LIMITS: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "stats_workers": (1, 1024),
    "stats_cache_bytes": (0, math.inf),
    "shutdown_seconds": (0.001, math.inf),
    "list_cache_seconds": (0, math.inf),
    "max_header_bytes": (1024, 1 << 20),
    "max_body_bytes": (1024, math.inf),
    "max_manifest_bytes": (1024, 256 << 20),
    "idle_seconds": (0.01, math.inf),
    "part_bytes": (1 << 10, 1 << 30),
    "parts_at_once": (1, 10_000),
    "max_upload_bytes": (0, math.inf),
    "max_upload_files": (1, 1_000_000),
    "max_sessions": (1, 1_000_000),
    "session_seconds": (1, math.inf),
    "requests_per_second": (0, math.inf),
    "upload_bytes_per_day": (0, math.inf),
    "series_seconds": (0, math.inf),
    "job_workers": (1, 256),
    "max_queued_jobs": (1, 1_000_000),
    "job_keep_seconds": (1, math.inf),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server serves, where, to whom and how much.

    Raises:
        ConfigurationError: a value cannot work.
    """

    root: str | os.PathLike[str]
    """Folder or fsspec URL of the checkpoints, laid out ``{root}/{run}/{step}/luma.json``."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback need a ``tokens_file``."""

    port: int = 0
    """TCP port to listen on; 0 lets the system choose a free one."""

    tokens_file: Path | None = None
    """File of `luma token create`; with it every request under ``/v1`` needs a token."""

    allow_anonymous: bool = False
    """Whether everybody on this machine may read and write, without a token; only on loopback. One
    of this and ``tokens_file`` is needed."""

    stats_workers: int = 2
    """Statistics computed at the same time; further requests wait."""

    stats_cache_bytes: int = 64 << 20
    """Bound on the statistics kept in memory as JSON; 0 keeps none."""

    shutdown_seconds: float = 5.0
    """How long requests in progress may take to end once the server was told to stop."""

    list_cache_seconds: float = 5.0
    """Roots that are not local folders: how old a listing may be before it is fetched anew."""

    max_header_bytes: int = 16 << 10
    """Longest request line and headers together."""

    max_body_bytes: int = 64 << 10
    """Longest body of a request, but for manifests and parts."""

    max_manifest_bytes: int = 64 << 20
    """Longest body of a request that holds a manifest."""

    idle_seconds: float = 30.0
    """How long a client may send nothing in the midst of a request, or take nothing of a file."""

    part_bytes: int = 8 << 20
    """Size of the parts in which files are sent."""

    parts_at_once: int = 16
    """Parts received at the same time; further ones wait."""

    max_upload_bytes: int = 1 << 42
    """Largest checkpoint that is taken."""

    max_upload_files: int = 10_000
    """Files of one checkpoint that is taken."""

    max_sessions: int = 64
    """Open upload sessions of one token."""

    session_seconds: float = 86400.0
    """How long an upload session is kept after it was begun or last used."""

    requests_per_second: float = 2000.0
    """Requests of one token, twice as many at once; 0 for no limit. Counted by each process."""

    upload_bytes_per_day: int = 0
    """Bytes that one token may send in 24 hours; 0 for no limit. Counted by each process."""

    series_seconds: float = 10.0
    """How long a request for a series waits for statistics before it answers without them."""

    job_workers: int = 1
    """Conversions at the same time, each in a process of its own."""

    max_queued_jobs: int = 100
    """Conversions that may wait."""

    job_keep_seconds: float = 7 * 86400.0
    """How long jobs and their downloads are kept once they ended."""

    def __post_init__(self) -> None:
        self._resolve_places()
        if isinstance(self.root, Path):
            check_folder(self.root)
        for field in fields(self):
            limits = _LIMITS.get(field.name)
            value = getattr(self, field.name)
            if limits is not None and not limits[0] <= value <= limits[1]:
                raise ConfigurationError(f"{field.name}={value} must be {_range(*limits)}.")
        self._check_access()

    def _resolve_places(self) -> None:
        """Make local places absolute: both are looked at again and again while the server runs."""
        if is_local(self.root):
            object.__setattr__(self, "root", local_path(self.root))
        if self.tokens_file is not None:
            object.__setattr__(self, "tokens_file", resolve_path(self.tokens_file))

    def _check_access(self) -> None:
        if self.tokens_file is not None and self.allow_anonymous:
            raise ConfigurationError(
                "allow_anonymous=True and tokens_file exclude each other.",
                hint="Leave one of --no-auth and --tokens-file out.",
            )
        if self.tokens_file is not None and not self.tokens_file.is_file():
            raise ConfigurationError(
                f"tokens_file {str(self.tokens_file)!r} is not a file.",
                hint=f"Make it: luma token create --tokens-file {self.tokens_file}",
            )
        if self.tokens_file is None and not self.is_loopback:
            raise ConfigurationError(
                f"host={self.host!r} can be reached from elsewhere, and there are no tokens.",
                hint="Give --tokens-file (luma token create makes one), or listen on 127.0.0.1.",
            )
        if self.tokens_file is None and not self.allow_anonymous:
            raise ConfigurationError(
                "nobody could use the server: there are no tokens.",
                hint="Give --tokens-file (luma token create makes one), or --no-auth to let "
                "everybody on this machine read and write.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of this machine for itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _range(low: float, high: float) -> str:
    return f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
