"""How much memory the host can still give to this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class _Group(NamedTuple):
    """Files of a control group: its limit, its use, and what of its use is reclaimable."""

    limit: str
    used: str
    reclaimable: str


_GROUPS = (
    # As a container sees its own, of the second and of the first version.
    _Group("memory.max", "memory.current", "inactive_file"),
    _Group("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_host_bytes(root: Path = Path("/")) -> int:
    """Return the memory that the host, or the container, can still give out.

    Args:
        root: below which ``proc`` and ``sys`` lie.
    """
    found = _available(root / "proc/meminfo")
    if found is None:
        found = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [_left(root / "sys/fs/cgroup", group) for group in _GROUPS]
    return min([found, *(size for size in left if size is not None)])


def _available(path: Path) -> int | None:
    fields = _fields(path)
    return fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else None


def _left(folder: Path, group: _Group) -> int | None:
    limit = folder / group.limit
    try:
        most = int(limit.read_text())
        used = int((folder / group.used).read_text())
    except (OSError, ValueError):
        # There is none, or it is "max".
        return None
    reclaimable = _fields(limit.parent / "memory.stat").get(group.reclaimable, 0)
    return max(0, most - used + reclaimable)


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
