"""Transfers of state between files and slots."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from luma_core.errors import StorageError
from luma_core.optim.offload.arena import Arena, HostArena
from luma_core.optim.offload.files import FileArena
from luma_core.optim.offload.movers import Copies, copies
from luma_core.optim.offload.pipeline import Move

_THREADS = 2


class _Run(NamedTuple):
    """Bytes of a file from ``first`` on, and their place in the host's memory."""

    arena: FileArena
    first: int
    memory: Tensor


@dataclass(eq=False)
class Bound:
    """What a chunk needs.

    Attributes:
        runs: between files and the host's memory.
        pairs: of that memory and the slot, where they are not the same.
        there: the read whose bytes the slot has.
    """

    runs: list[_Run]
    pairs: Copies
    there: Future[None] | None = None


class FileMover:
    """Reads and writes of files on threads, to and from slots of the host's memory.

    Args:
        arenas: what state is in, as it is at any time.
    """

    def __init__(self, arenas: Sequence[Arena]) -> None:
        self._arenas = arenas
        self._readers = ThreadPoolExecutor(_THREADS, "luma-offload-read")
        self._writers = ThreadPoolExecutor(_THREADS, "luma-offload-write")
        self._under_way: list[Future[None]] = []

    def slot(self, nbytes: int) -> Tensor:
        """Return memory of the host, of whole pages, large ones where there are such."""
        return HostArena(nbytes, pin=False, for_disk=True).bytes[:nbytes]

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Bound:
        """Return where each run is in its file, and its memory in the slot."""
        return Bound(self._runs(moves, slot), [])

    def _runs(self, moves: Sequence[Move], memory: Tensor) -> list[_Run]:
        runs = []
        for home, place in copies(moves, memory):
            arena = self._arena_of(home)
            runs.append(_Run(arena, home.data_ptr() - arena.bytes.data_ptr(), place))
        return runs

    def _arena_of(self, view: Tensor) -> FileArena:
        storage = view.untyped_storage().data_ptr()
        for arena in self._arenas:
            if arena.bytes.untyped_storage().data_ptr() == storage:
                assert isinstance(arena, FileArena)
                return arena
        raise AssertionError("state is of no arena")

    def fetch(self, bound: Bound, after: Sequence[Future[None]]) -> Future[None]:
        """Begin to read."""
        return self._submit(self._readers, partial(_read, bound.runs, list(after)))

    def ready(self, bound: Bound, token: Future[None]) -> None:
        """Wait for the reads."""
        _raise_failure(token)

    def wait(self, token: Future[None]) -> None:
        """Wait for the writes."""
        _raise_failure(token)

    def store(self, bound: Bound) -> Future[None]:
        """Begin to write; raises `StorageError` if a file has lost bytes before."""
        return self._store(lambda: None, bound)

    def _store(self, copied: Callable[[], None], bound: Bound) -> Future[None]:
        for run in bound.runs:
            run.arena.check()
        return self._submit(self._writers, partial(_write, bound.runs, copied))

    def _submit(self, pool: ThreadPoolExecutor, run: Callable[[], None]) -> Future[None]:
        self._drop_succeeded()
        begun = pool.submit(run)
        self._under_way.append(begun)
        return begun

    def synchronize(self) -> None:
        """Wait for all transfers; raises `StorageError` if one failed since `forget`."""
        wait(self._under_way)
        self._drop_succeeded()
        for failed in self._under_way:
            _raise_failure(failed)

    def forget(self) -> None:
        """Wait for all transfers, whatever becomes of them."""
        wait(self._under_way)
        self._under_way.clear()

    def _drop_succeeded(self) -> None:
        self._under_way = [
            future for future in self._under_way if not (future.done() and not future.exception())
        ]


class FileCudaMover(FileMover):
    """As `FileMover`, to and from slots of a CUDA device, through pinned memory.

    Args:
        arenas: what state is in, as it is at any time.
        device: of the slots.
    """

    def __init__(self, arenas: Sequence[Arena], device: torch.device) -> None:
        super().__init__(arenas)
        self._device = device
        self._back = torch.cuda.Stream(device)
        self._staging: list[tuple[weakref.ref[Tensor], HostArena]] = []

    def slot(self, nbytes: int) -> Tensor:
        """Return memory of the device, and keep as much pinned memory for it."""
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        self._staging = [kept for kept in self._staging if kept[0]() is not None]
        self._staging.append((weakref.ref(memory), HostArena(nbytes, pin=True, for_disk=True)))
        return memory

    def bind(self, moves: Sequence[Move], slot: Tensor) -> Bound:
        """Return where each run is in its file, and its memory in front of the slot."""
        staging = next(arena.bytes for memory, arena in self._staging if memory() is slot)
        pairs = [
            (staging[first : first + home.numel()], place)
            for (home, first), (_, place) in zip(moves, copies(moves, slot), strict=True)
        ]
        return Bound(self._runs(moves, staging), pairs)

    def ready(self, bound: Bound, token: Future[None]) -> None:
        """Wait for the reads, and copy to the slot on the current stream."""
        _raise_failure(token)
        if bound.there is token:
            return
        for staged, place in bound.pairs:
            place.copy_(staged, non_blocking=True)
        bound.there = token

    def store(self, bound: Bound) -> Future[None]:
        """Copy from the slot behind the current stream, and begin to write once that is done."""
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            for staged, place in bound.pairs:
                staged.copy_(place, non_blocking=True)
            copied = self._back.record_event()
        return self._store(copied.synchronize, bound)


def _raise_failure(transfer: Future[None]) -> None:
    """Wait for a transfer, and raise what went wrong with it.

    Raised anew: an error that the transfer keeps would keep, with its traceback, all who wait.
    """
    error = transfer.exception()
    if isinstance(error, StorageError):
        raise StorageError(error.message, hint=error.hint) from error
    if error is not None:
        raise error


def _read(runs: list[_Run], after: list[Future[None]]) -> None:
    for earlier in after:
        _raise_failure(earlier)
    for arena, first, memory in runs:
        arena.read(first, memory)


def _write(runs: list[_Run], copied: Callable[[], None]) -> None:
    copied()
    for arena, first, memory in runs:
        arena.write(first, memory)
