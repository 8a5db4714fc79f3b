"""Writing the shards of one rank, several at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from luma_core.checkpoint.format.compression import in_order
from luma_core.checkpoint.format.manifest import FileEntry, TensorEntry
from luma_core.checkpoint.format.shard import PlannedTensor, ShardWriter
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.checkpoint.storage.store import Store

WrittenShard = tuple[FileEntry, list[TensorEntry]]
"""What a manifest says of a shard."""


class Shard(NamedTuple):
    """A shard to be written.

    Attributes:
        name: of its file.
        kind: of its tensors.
        tensors: in their order.
    """

    name: str
    kind: ShardKind
    tensors: Sequence[PlannedTensor]


class _StoppedError(Exception):
    """Stops writing the other shards after one has failed."""


class ShardLanes:
    """Writes shards in lanes.

    Args:
        store: the folder.
        writer: returns what writes a shard of a kind, and calls what it is given with the raw bytes
            that are done.
        lanes: how many shards are written at once.
        progress: called with bytes done and in total.
        total_bytes: of all shards.
    """

    def __init__(
        self,
        store: Store,
        writer: Callable[[ShardKind, Callable[[int], None]], ShardWriter],
        *,
        lanes: int,
        progress: Progress | None,
        total_bytes: int,
    ) -> None:
        self._store = store
        self._writer = writer
        self._lanes = lanes
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._begun: list[str] = []
        self._stopped = threading.Event()
        self._cause: BaseException | None = None
        self._tick_lock = threading.Lock()

    def write(self, shards: Sequence[Shard]) -> list[WrittenShard]:
        """Write all shards, or none: where one fails, those that were begun are removed."""
        try:
            self._tick(0)
            return list(self._written(shards))
        except BaseException:
            for name in self._begun:
                with contextlib.suppress(OSError):
                    self._store.delete(name)
            raise

    def _written(self, shards: Sequence[Shard]) -> Iterator[WrittenShard]:
        lanes = min(self._lanes, len(shards))
        if lanes < 2:
            yield from map(self._write_shard, shards)
            return
        pool = ThreadPoolExecutor(lanes)
        try:
            yield from in_order(pool, self._write_shard, shards, waiting=lanes)
        except _StoppedError as stopped:
            raise self._cause or stopped from None
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _write_shard(self, shard: Shard) -> WrittenShard:
        self._begun.append(shard.name)
        try:
            writer = self._writer(shard.kind, self._tick)
            return writer.write(shard.name, shard.kind, shard.tensors)
        except BaseException as error:
            self._cause = self._cause or error
            self._stopped.set()
            raise

    def _tick(self, raw_bytes: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._tick_lock:
            self._done_bytes += raw_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)
