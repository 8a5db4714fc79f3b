"""One tensor that an asynchronous save has still to read."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from functools import partial

import numpy as np
import torch
from torch import Tensor

from luma_core import mapped
from luma_core.checkpoint.format.shard import raw_chunks
from luma_core.checkpoint.staging.copy_on_write import CopyOnWriteGuard, Job, Version
from luma_core.checkpoint.staging.pool import StagingPool, kind_of
from luma_core.direct import Bytes
from luma_core.errors import StateChangedError


class Way(Enum):
    """How a tensor is kept from being changed before it was read."""

    BACKGROUND = auto()
    """It is copied asynchronously, beginning with the last bytes, which are written last."""

    WAIT = auto()
    """It is never copied: a step waits until it was read."""


_LIVE, _BUSY, _COPIED, _READ = range(4)


class HostTensor:
    """A tensor in the CPU's memory, which is read and copied piece by piece.

    Args:
        guard: of the save.
        name: of the tensor.
        source: contiguous.
        way: when it is copied.
        pool: gives the memory for that.
        piece_bytes: of a piece, a multiple of the size of an element.
        again: whether the save may read it more than once.
    """

    def __init__(
        self,
        guard: CopyOnWriteGuard,
        name: str,
        source: Tensor,
        way: Way,
        pool: StagingPool,
        *,
        piece_bytes: int,
        again: bool,
    ) -> None:
        self.version = Version(name, source, guard.changed)
        self._guard = guard
        self._way = way
        self._pool = pool
        self._kind = kind_of(source)
        self._live = source.reshape(-1).view(torch.uint8)
        self._source: Bytes = self._live.numpy()
        self._copy: Bytes | None = None
        self._piece_bytes = piece_bytes
        self._again = again
        self._states = bytearray(-(-len(self._source) // piece_bytes))
        self._left = len(self._states)
        self.first = source.data_ptr()
        self.stop = self.first + source.nbytes

    def pieces(self, chunk_bytes: int) -> Iterator[Bytes]:
        """Yield the bytes of then, piece by piece."""
        assert chunk_bytes == self._piece_bytes
        for index in range(len(self._states)):
            yield self._read(index)

    def jobs(self, first: int, stop: int) -> Iterator[Job]:
        """Yield what copies the bytes between two addresses, where they are not safe."""
        if self._way is not Way.WAIT:
            yield from (partial(self._copy_piece, index) for index in self._unsafe(first, stop))

    def wait(self, first: int, stop: int) -> None:
        """Wait until those bytes were read, where they are not to be copied."""
        for index in self._unsafe(first, stop):
            with self._guard.changed:
                self._guard.wait_while(partial(self._is, index, _LIVE, _BUSY))

    def copy_in_background(self) -> None:
        """Copy from the back, until the save that reads from the front is met."""
        if self._way is Way.BACKGROUND:
            for index in reversed(range(len(self._states))):
                self._copy_piece(index)

    def close(self) -> None:
        """Do nothing: whoever copies is waited for."""

    def _place(self, index: int) -> slice:
        return slice(index * self._piece_bytes, (index + 1) * self._piece_bytes)

    def _is(self, index: int, *states: int) -> bool:
        return self._states[index] in states

    def _unsafe(self, first: int, stop: int) -> Iterator[int]:
        begin, end = (first - self.first) // self._piece_bytes, stop - self.first
        for index in range(begin, -(-end // self._piece_bytes)):
            if self._is(index, _LIVE, _BUSY):
                yield index

    def _read(self, index: int) -> Bytes:
        place, guard = self._place(index), self._guard
        with guard.changed:
            guard.wait_while(partial(self._is, index, _BUSY))
            guard.check()
            copied = self._states[index] == _COPIED
            if not copied:
                assert self._states[index] == _LIVE or guard.over
                self._states[index] = _BUSY
        if copied:
            assert self._copy is not None
            piece = self._copy[place]
        else:
            piece = self._read_live(index)
        if self._again and index == len(self._states) - 1:
            # Pieces that were read live are live still, so nobody has checked them.
            self.version.check()
        guard.check()
        return piece

    def _read_live(self, index: int) -> Bytes:
        place, found = self._place(index), _LIVE
        try:
            # Memory of its own: the store may take long, and training does not wait for it.
            from_file = mapped.pieces(self._live[place], self._piece_bytes)
            piece = self._source[place].copy() if from_file is None else next(from_file)
            found = _LIVE if self._again else _READ
        finally:
            self._leave(index, found)
        return piece

    def _copy_piece(self, index: int) -> None:
        """Copy a piece unless it is safe; errors are those of the save."""
        place, guard = self._place(index), self._guard
        with guard.working():
            with guard.changed:
                guard.wait_while(partial(self._is, index, _BUSY))
                if guard.over or self._states[index] != _LIVE:
                    return
                if self._copy is None:
                    self._copy = bytes_of(self._pool.new(self._kind))
                self._states[index] = _BUSY
            found = _LIVE
            try:
                # Twice as fast as torch's own, which reads memory that it is about to overwrite.
                np.copyto(self._copy[place], self._source[place])
                found = _COPIED
            finally:
                self._leave(index, found)

    def _leave(self, index: int, state: int) -> None:
        with self._guard.changed:
            self._states[index] = state
            self._left -= state != _LIVE
            done = not self._left and state != _LIVE
            if done:
                # Before anybody sees the last piece: a save that has all of them commits.
                self._check_version()
            self._guard.changed.notify_all()
        if done:
            self._guard.safe()

    def _check_version(self) -> None:
        try:
            self.version.check()
        except StateChangedError as error:
            self._guard.fail(error)


class DeviceTensor:
    """A tensor of a CUDA device, which is copied to pinned memory asynchronously.

    Args:
        guard: of the save.
        name: of the tensor.
        source: contiguous.
        stream: that the copy is made on.
        pool: gives the memory for it.
    """

    def __init__(
        self,
        guard: CopyOnWriteGuard,
        name: str,
        source: Tensor,
        stream: torch.cuda.Stream,
        pool: StagingPool,
    ) -> None:
        self.version = Version(name, source, guard.changed)
        self._guard = guard
        self._stream = stream
        self._pool = pool
        self._source: Tensor | None = source
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self.first = source.data_ptr()
        self.stop = self.first + source.nbytes

    def pieces(self, chunk_bytes: int) -> Iterator[Bytes]:
        """Yield the bytes of then, piece by piece."""
        copied = self._begun()
        self._guard.check()
        assert copied is not None
        assert self._copy is not None
        copied.synchronize()
        if self._source is not None:
            self.version.check()
            self.version.forget()
            self._source = None
            self._guard.safe()
        yield from raw_chunks(self._copy, chunk_bytes)

    def jobs(self, first: int, stop: int) -> Iterator[Job]:
        """Yield nothing: all bytes are copied asynchronously."""
        yield from ()

    def wait(self, first: int, stop: int) -> None:
        """Wait until the copy has begun, and let the current stream wait until it has ended."""
        if self._source is None:
            return
        copied = self._begun()
        if copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(copied)

    def copy_in_background(self) -> None:
        """Begin to copy."""
        source = self._source
        if self._guard.over or source is None:
            return
        self._copy = self._pool.new(kind_of(source))
        with torch.cuda.stream(self._stream):
            self._copy.copy_(source, non_blocking=True)
            copied = self._stream.record_event()
        with self._guard.changed:
            self._copied = copied
            self._guard.changed.notify_all()

    def close(self) -> None:
        """Wait for the copy, which uses memory that others are about to use."""
        if self._copy is not None:
            self._stream.synchronize()
        self._source = None

    def _begun(self) -> torch.cuda.Event | None:
        with self._guard.changed:
            self._guard.wait_while(lambda: self._copied is None)
        return self._copied


def has_plain_bytes(tensor: Tensor) -> bool:
    """Return whether a tensor's memory is its values, in their order."""
    plain = type(tensor) is Tensor and tensor.is_contiguous()
    return plain and not tensor.is_neg() and not tensor.is_conj()


def bytes_of(tensor: Tensor) -> Bytes:
    """Return the memory of a contiguous tensor of the CPU."""
    found: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return found
