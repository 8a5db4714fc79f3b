"""A bounded cache, and one that computes what it lacks only once at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the most recently used values whose sizes add up to at most ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return a value, or ``None`` where it is not cached."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value, unless it alone is larger than the cache."""
        if key in self._entries:
            self.size -= self._entries.pop(key)[1]
        if size > self.capacity:
            return
        self._entries[key] = (value, size)
        self.size += size
        while self.size > self.capacity:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.size -= dropped


class SingleFlight(Generic[K, V]):
    """Computes values by key: those that ask for the same key meanwhile share one computation.

    Belongs to one event loop. Failures are told to all who wait, and not cached.

    Args:
        capacity_bytes: bound on what is cached.
        size_of: returns the bytes of a value.
    """

    def __init__(self, capacity_bytes: int, size_of: Callable[[V], int]) -> None:
        self.cache: BoundedCache[K, V] = BoundedCache(capacity_bytes)
        self._size_of = size_of
        self._running: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, compute: Callable[[], Awaitable[V]]) -> V:
        """Return the value of ``key``, computed if it is not cached."""
        known = self.cache.get(key)
        if known is not None:
            return known
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._compute(key, compute))
            self._running[key] = task
            # Also reads the exception of a task nobody waits for any more.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # One who goes away must not take the result from the others.
        return await asyncio.shield(task)

    async def _compute(self, key: K, compute: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await compute()
            self.cache.put(key, value, self._size_of(value))
            return value
        finally:
            del self._running[key]
