"""Memory into which offloaded state is loaded, while the optimizer still uses its present state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luma_core.direct import Bytes
from luma_core.optim.offload.arena import Arena, Intake, Placed, arranged
from luma_core.sharding import local_tensor

_COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class AwaitedTensor:
    """A stored tensor that is to be loaded.

    Attributes:
        name: of its parameter.
        key: ``<moment>.<field>``.
        dtype: of it.
        shape: of what this process has of it.
    """

    name: str
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class LoadArena:
    """A new block with a place for each tensor that is to be loaded.

    The optimizer keeps its present state until all tensors are loaded and `Offloader.take` gets
    this arena. If loading fails, the arena is dropped and nothing has changed.

    Args:
        awaited: the tensors.
        arena: makes a block of a size in bytes.

    Raises:
        StorageError: the disk has no room for it beside the present state.
        ConfigurationError: the host's memory has none.
    """

    def __init__(self, awaited: Sequence[AwaitedTensor], arena: Callable[[int], Arena]) -> None:
        firsts, size = arranged([Placed(item.key, item.dtype, item.shape) for item in awaited])
        self.arena = arena(size)
        intake = self.arena.intake()
        self._rooms = {
            (item.name, item.key): Room(self.arena.bytes, intake, first, item)
            for item, first in zip(awaited, firsts, strict=True)
        }

    def room(self, name: str, key: str) -> Room | None:
        """Return the place of a tensor; ``None`` where it has none."""
        return self._rooms.get((name, key))

    def put(self, name: str, key: str, local: Tensor) -> Tensor:
        """Copy a tensor to its place and return what is there; without a place, itself.

        Args:
            name: of the parameter.
            key: ``<moment>.<field>``.
            local: what this process has of it; may be in place already.
        """
        room = self.room(name, key)
        if room is None:
            return local
        if local.untyped_storage().data_ptr() != self.arena.bytes.untyped_storage().data_ptr():
            room.fill(local)
        return room.view()


class Room:
    """The place of one tensor; may be filled by several threads.

    Args:
        block: the bytes of all tensors.
        intake: fills them.
        first: index of its first byte there.
        item: the tensor.
    """

    def __init__(self, block: Tensor, intake: Intake, first: int, item: AwaitedTensor) -> None:
        self._block = block
        self._intake = intake
        self._first = first
        self._item = item
        self._size_bytes = math.prod(item.shape) * item.dtype.itemsize

    def view(self) -> Tensor:
        """Return the tensor in its place."""
        run = self._block[self._first : self._first + self._size_bytes]
        return run.view(self._item.dtype).view(self._item.shape)

    def part(self, first: int, size_bytes: int) -> Bytes:
        """Return memory for some of its bytes, to be filled by one thread."""
        found: Bytes = self._intake.part(self._first + first, size_bytes).numpy()
        return found

    def filled(self, first: int, data: Bytes) -> None:
        """Take what `part` returned, now that it is filled.

        Raises:
            StorageError: the disk failed.
        """
        self._intake.filled(self._first + first, torch.from_numpy(data))

    def fill(self, local: Tensor) -> None:
        """Copy all of the tensor, from any device."""
        source = local_tensor(local).detach().contiguous().view(-1).view(torch.uint8)
        for first in range(0, self._size_bytes, _COPY_BYTES):
            piece = source[first : first + _COPY_BYTES]
            memory = self._intake.part(self._first + first, piece.numel())
            memory.copy_(piece)
            self._intake.filled(self._first + first, memory)
