"""How the memory that saving and reading may hold is divided."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from luma_core.errors import ConfigurationError

MAX_MEMORY_BYTES = 512 << 20
"""Default bound on what saving, loading and verifying hold beside the state itself."""

MIN_MEMORY_BYTES = 128 << 20

MAX_LANES = 4
_LANE_BYTES = 192 << 20
_MAX_SCRATCH_BYTES = 64 << 20

# A chunk that is being coded is there three times: its planes, its frame and its own bytes.
_WORKER_BYTES = 3 * (4 << 20)


@dataclass(frozen=True)
class Budget:
    """What may go on at the same time.

    Attributes:
        lanes: shards that are written or checked at once.
        workers: threads that code chunks, in each lane.
        scratch_bytes: of each lane's compressed shard that may stay in memory.
    """

    lanes: int
    workers: int
    scratch_bytes: int

    @classmethod
    def of(cls, max_memory_bytes: int) -> Self:
        """Divide ``max_memory_bytes``.

        Raises:
            ConfigurationError: it is no integer, or less than 128 MiB.
        """
        if isinstance(max_memory_bytes, bool) or not isinstance(max_memory_bytes, int):
            raise ConfigurationError(f"max_memory_bytes={max_memory_bytes!r} must be an integer.")
        if max_memory_bytes < MIN_MEMORY_BYTES:
            raise ConfigurationError(
                f"max_memory_bytes={max_memory_bytes} must be at least {MIN_MEMORY_BYTES}.",
                hint="A chunk for each thread and the parts of an upload need that much.",
            )
        lanes = min(max(max_memory_bytes // _LANE_BYTES, 1), MAX_LANES)
        share = max_memory_bytes // lanes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        workers = min(max(cores // lanes, 2), share // 3 // _WORKER_BYTES)
        scratch = min(share // 4, _MAX_SCRATCH_BYTES)
        return cls(lanes, workers, scratch)
