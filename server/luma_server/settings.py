"""Everything about the server that can be set."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from luma_core.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server serves, and where.

    Raises:
        ConfigurationError: a value cannot work.
    """

    root: Path
    """Folder of the checkpoints, laid out ``{root}/{run}/{step}/luma.json``. Must exist."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication, so others than loopback are for networks
    in which everybody may read everything under the root."""

    port: int = 0
    """TCP port to listen on; 0 lets the system choose a free one."""

    stats_workers: int = 2
    """Statistics computed at the same time; further requests wait."""

    stats_cache_bytes: int = 64 << 20
    """Bound on the statistics kept in memory as JSON; 0 keeps none."""

    shutdown_seconds: float = 5.0
    """How long requests in progress may take to end once the server was told to stop."""

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise ConfigurationError(
                f"root {str(self.root)!r} {what}.",
                hint="Give the folder that holds {run}/{step}/luma.json.",
            )
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port={self.port} must be from 0 to 65535.")
        if self.stats_workers < 1:
            raise ConfigurationError(f"stats_workers={self.stats_workers} must be at least 1.")
        if self.stats_cache_bytes < 0:
            raise ConfigurationError(
                f"stats_cache_bytes={self.stats_cache_bytes} must not be negative."
            )
        if not self.shutdown_seconds > 0:
            raise ConfigurationError(f"shutdown_seconds={self.shutdown_seconds} must be above 0.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
