"""Memory that offloaded state lives in: one block for all of it."""

from __future__ import annotations

import logging
import math
import mmap
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from luma_core.direct import transfer_memory
from luma_core.errors import ConfigurationError
from luma_core.sharding import is_sharded, local_tensor

_LOGGER = logging.getLogger(__name__)

ALIGNMENT_BYTES = 256
DIRECT_BYTES = 256 << 10
"""Least size of what lies in a slot at the same place of a page as in its arena."""


class Arena(Protocol):
    """A block of zeros that tensors are placed in."""

    bytes: Tensor
    """uint8, all of it."""

    def intake(self) -> Intake:
        """Return what fills it, before it is used."""
        ...


class Intake(Protocol):
    """Fills an arena; may be used by several threads."""

    def part(self, first: int, size_bytes: int) -> Tensor:
        """Return memory, uint8 on the CPU, for bytes from ``first`` on; not empty."""
        ...

    def filled(self, first: int, memory: Tensor) -> None:
        """Take what `part` returned, now that it is filled; it may be used anew then.

        Raises:
            StorageError: the disk failed.
        """
        ...


class HostArena:
    """Memory of the host, pinned where there is a CUDA device.

    Where it cannot be pinned, that is logged once and transfers are slower, but right.

    Args:
        size: bytes.
        pin: whether to pin it.
        for_disk: whether disks read and write it: it is in large pages then, where there are such,
            and not there in forked children.

    Raises:
        ConfigurationError: the host does not give that much.
    """

    def __init__(self, size: int, *, pin: bool, for_disk: bool = False) -> None:
        size = max(size, mmap.PAGESIZE)
        # Of the system itself: PyTorch rounds pinned memory up to powers of two.
        try:
            self.bytes = torch.from_numpy(transfer_memory(size)) if for_disk else _shared(size)
        except OSError as error:
            raise ConfigurationError(
                f"{size:,} bytes of the host's memory cannot be had for offloaded state: "
                f"{error.strerror}.",
                hint="Use offload='disk'.",
            ) from error
        self.pinned = pin and _pinned(self)

    def intake(self) -> HostArena:
        """Return itself: what it takes is in place."""
        return self

    def part(self, first: int, size_bytes: int) -> Tensor:
        """Return the bytes themselves."""
        return self.bytes[first : first + size_bytes]

    def filled(self, first: int, memory: Tensor) -> None:
        """Do nothing: they are in place."""


def _shared(size: int) -> Tensor:
    """Return memory that forked children have too, without a copy."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Kernels may be built without, and mostly give none to memory of this kind.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _pinned(arena: HostArena) -> bool:
    address, size = arena.bytes.data_ptr(), arena.bytes.numel()
    error = register(address, size)
    if error:
        warn_not_pinned(error)
        return False
    # At the end of the process, which unpins by itself, CUDA may be gone already.
    weakref.finalize(arena, _unregister, address, arena.bytes).atexit = False
    return True


@cache
def warn_not_pinned(error: str) -> None:
    """Log, once for each error, that memory could not be pinned."""
    _LOGGER.warning(
        "offload: host memory cannot be pinned (%s); transfers are slower. Raise the limit of "
        "locked memory (ulimit -l), or of the container.",
        error,
    )


def register(address: int, size: int) -> str:
    """Pin memory; return what is wrong, or an empty string."""
    runtime: Any = torch.cuda.cudart()
    code = int(runtime.cudaHostRegister(address, size, 0))
    if code == 0:
        return ""
    # CUDA keeps the error for whoever asks next, which would be the next kernel's launch.
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    return f"cudaHostRegister: error {code}"


def _unregister(address: int, held: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()
    torch.cuda.synchronize()
    runtime.cudaHostUnregister(address)
    del held


def place(
    states: Iterable[dict[str, Tensor]],
    keys: Callable[[dict[str, Tensor]], Iterable[str]],
    arena: Callable[[int], Arena],
) -> Arena | None:
    """Move stored tensors into one new arena, and put views of it in their place.

    What is stepped together is moved by few transfers so.

    Args:
        states: of parameters; changed in place.
        keys: which of a state's tensors to move.
        arena: makes an arena of zeros of a size in bytes.

    Returns:
        the arena; ``None`` where there was nothing to move.
    """
    found = [(state, key) for state in states for key in keys(state)]
    if not found:
        return None
    old = [local_tensor(state[key]) for state, key in found]
    firsts, size = arranged(
        [
            Placed(key, value.dtype, tuple(value.shape))
            for (_, key), value in zip(found, old, strict=True)
        ]
    )
    made = arena(size)
    for (state, key), value, first in zip(found, old, firsts, strict=True):
        view = made.bytes[first : first + value.nbytes].view(value.dtype).view(value.shape)
        if not is_blank(value):
            view.copy_(value)
        state[key] = like(state[key], view)
    return made


class Placed(NamedTuple):
    """A tensor that gets a place in a block."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its place."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def arranged(tensors: Sequence[Placed]) -> tuple[list[int], int]:
    """Return the first byte of each tensor in a block for all of them, and the block's size.

    Tensors of one key lie side by side in their order.
    """
    itemsizes: dict[str, int] = {}
    for each in tensors:
        itemsizes.setdefault(each.key, each.dtype.itemsize)
    rank = {key: place for place, key in enumerate(sorted(itemsizes, key=lambda k: -itemsizes[k]))}
    firsts, end = [0] * len(tensors), 0
    for index in sorted(range(len(tensors)), key=lambda index: rank[tensors[index].key]):
        firsts[index] = end
        end += tensors[index].size_bytes
    return firsts, end


def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that take no memory, for state that is about to be placed."""
    return torch.zeros((), dtype=dtype, device="cpu").expand(shape)


def is_blank(tensor: Tensor) -> bool:
    """Return whether a tensor was made by `blank`."""
    if tensor.numel() <= 1 or tensor.device.type != "cpu":
        return False
    return not any(
        step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )


def like(old: Tensor, local: Tensor) -> Tensor:
    """Return a local tensor as a DTensor where ``old``, whose place it takes, is one."""
    if not is_sharded(old):
        return local
    kind: Any = type(old)
    made: Tensor = kind(local, old._spec, requires_grad=False)
    return made
