"""Moves state into slots ahead of its step, and back behind it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

Token = Any
"""What a transfer can be waited for by."""


class Move(NamedTuple):
    """A run of bytes that a chunk needs.

    Attributes:
        home: uint8, the run where it lives.
        first: index of its first byte in the slot.
    """

    home: Tensor
    first: int


class Mover(Protocol):
    """Transfers between the memory that state lives in and slots."""

    def slot(self, nbytes: int) -> Tensor:
        """Return memory for a slot, uint8."""
        ...

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Any:
        """Return what `fetch` and `store` need of moves of a chunk that uses a slot."""
        ...

    def fetch(self, bound: Any, after: Sequence[Token]) -> Token:
        """Begin to bring a chunk's state into its slot, once ``after`` are done."""
        ...

    def ready(self, bound: Any, token: Token) -> None:
        """Make what the caller does next wait for a `fetch`."""
        ...

    def wait(self, token: Token) -> None:
        """Make what the caller does next wait for a `store`."""
        ...

    def store(self, bound: Any) -> Token:
        """Begin to take state back, once what the caller did is done."""
        ...

    def synchronize(self) -> None:
        """Wait for all transfers; raises what went wrong with one since `forget`."""
        ...

    def forget(self) -> None:
        """Wait for all transfers, whatever becomes of them."""
        ...


@dataclass(eq=False)
class Slot:
    """Memory near the step that holds one chunk's state at a time.

    Attributes:
        memory: uint8.
        pending: whether that was fetched for a step still to come.
        fetched: the last transfer into it.
        stored: the last transfer out of it.
    """

    memory: Tensor
    pending: bool = False
    fetched: Token | None = None
    stored: Token | None = None
    _chunk: weakref.ref[Chunk] | None = None

    @property
    def chunk(self) -> Chunk | None:
        """Whose state it holds, or is to hold: not kept alive by that, since chunks have slots."""
        return None if self._chunk is None else self._chunk()

    @chunk.setter
    def chunk(self, chunk: Chunk | None) -> None:
        self._chunk = None if chunk is None else weakref.ref(chunk)


@dataclass(eq=False)
class Chunk:
    """State that is moved together.

    Attributes:
        slot: where to.
        bound: what the mover needs.
        fetched: the last transfer into the slot.
        stored: the last transfer back.
        following: the chunk that was stepped after this one the last time; weak, since the last
            chunk of a step is followed by the first of the next.
    """

    slot: Slot
    bound: Any
    fetched: Token | None = None
    stored: Token | None = None
    following: weakref.ref[Chunk] | None = None


class Pipeline:
    """Slots that chunks use in turn.

    Chunks are expected in the order of the last time: whichever slot is free is filled for the next
    chunk that uses it, also over the end of a step. A chunk that is still in its slot when its turn
    comes is not fetched again.

    Args:
        mover: does the transfers.
        buffer_bytes: of all slots together, if that is enough for two of the largest chunks.
        slots: most slots.
    """

    def __init__(self, mover: Mover, *, buffer_bytes: int, slots: int) -> None:
        self.mover = mover
        self.generation = 0
        self._buffer_bytes = buffer_bytes
        self._most = slots
        self._slots: list[Slot] = []
        self._turn = 0
        self._last: Chunk | None = None
        self.slot_bytes = buffer_bytes // slots

    @property
    def memory_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(slot.memory.numel() for slot in self._slots)

    def reserve(self, nbytes: int) -> None:
        """Make slots of ``nbytes`` at least; chunks made before must be made anew if they grow."""
        if self._slots and nbytes <= self.slot_bytes:
            return
        self.forget()
        self.slot_bytes = max(self.slot_bytes, nbytes)
        count = max(2, min(self._most, self._buffer_bytes // self.slot_bytes))
        self._slots.clear()
        self._slots = [Slot(self.mover.slot(self.slot_bytes)) for _ in range(count)]
        self.generation += 1

    def chunk(self, moves: Sequence[Move]) -> Chunk:
        """Return a new chunk, whose slot is the next in turn."""
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        return Chunk(slot, self.mover.bind(moves, slot.memory))

    def run(self, chunk: Chunk, step: Callable[[], None]) -> None:
        """Step a chunk: its state is in the slot while ``step`` runs."""
        if chunk.slot.chunk is not chunk:
            self._fetch(chunk)
        elif chunk.slot.stored is not None:
            # Two transfers back at once could arrive in either order.
            self.mover.wait(chunk.slot.stored)
        self.mover.ready(chunk.bound, chunk.fetched)
        chunk.slot.pending = False
        step()
        chunk.stored = chunk.slot.stored = self.mover.store(chunk.bound)
        if self._last is not None:
            self._last.following = weakref.ref(chunk)
        self._last = chunk
        self._fetch_ahead(chunk)

    def settle(self) -> None:
        """Wait until all state is back where it lives."""
        self.mover.synchronize()

    def forget(self) -> None:
        """Wait for all transfers, and take nothing in slots for valid any longer."""
        self.mover.forget()
        self._last = None
        for slot in self._slots:
            slot.chunk, slot.pending, slot.fetched, slot.stored = None, False, None, None

    def _fetch(self, chunk: Chunk) -> None:
        slot = chunk.slot
        # What was fetched into the slot may never have been waited for.
        tokens = slot.stored, chunk.stored, slot.fetched
        after = [token for token in tokens if token is not None]
        slot.chunk, slot.pending = chunk, True
        chunk.fetched = slot.fetched = self.mover.fetch(chunk.bound, after)

    def _fetch_ahead(self, chunk: Chunk) -> None:
        following = _followed(chunk)
        for _ in self._slots:
            if following is None or following is chunk:
                return
            if following.slot.chunk is not following:
                if following.slot.pending:
                    return
                self._fetch(following)
            following = _followed(following)


def _followed(chunk: Chunk) -> Chunk | None:
    return None if chunk.following is None else chunk.following()
