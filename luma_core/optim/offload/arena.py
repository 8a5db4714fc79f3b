"""Memory that offloaded state lives in: one block for all of it."""

from __future__ import annotations

import logging
import math
import mmap
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from luma_core.errors import ConfigurationError
from luma_core.sharding import is_sharded, local_tensor

_LOGGER = logging.getLogger(__name__)

ALIGNMENT_BYTES = 256
PAGE_BYTES = 4096
DIRECT_BYTES = 256 << 10
"""Least size of what lies in a slot at the same place of a page as in its arena."""


class Arena(Protocol):
    """A block of zeros that tensors are placed in."""

    bytes: Tensor
    """uint8, all of it."""


class HostArena:
    """Memory of the host, pinned where there is a CUDA device.

    Where it cannot be pinned, that is logged once and transfers are slower, but right.

    Args:
        size: bytes.
        pin: whether to pin it.

    Raises:
        ConfigurationError: the host does not give that much.
    """

    def __init__(self, size: int, *, pin: bool) -> None:
        # Of the system itself: PyTorch rounds pinned memory up to powers of two.
        try:
            self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE))
        except OSError as error:
            raise ConfigurationError(
                f"{size:,} bytes of the host's memory cannot be had for offloaded state: "
                f"{error.strerror}.",
                hint="Use offload='disk'.",
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Kernels may be built without.
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.pinned = pin and _pinned(self)


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

    Tensors of one key lie side by side in the order of the states, so that what is stepped together
    is moved by few transfers.

    Args:
        states: of parameters; changed in place.
        keys: which of a state's tensors to move.
        arena: makes an arena of zeros of a size in bytes.

    Returns:
        the arena; ``None`` where there was nothing to move.
    """
    wanted: dict[str, list[dict[str, Tensor]]] = {}
    for state in states:
        for key in keys(state):
            wanted.setdefault(key, []).append(state)
    order = sorted(wanted, key=lambda key: -local_tensor(wanted[key][0][key]).element_size())
    places = [(key, state) for key in order for state in wanted[key]]
    sizes = [_padded(state[key]) for key, state in places]
    if not places:
        return None
    made = arena(sum(sizes))
    first = 0
    for (key, state), size in zip(places, sizes, strict=True):
        old = local_tensor(state[key])
        nbytes = old.numel() * old.element_size()
        view = made.bytes[first : first + nbytes].view(old.dtype).view(old.shape)
        if not is_blank(old):
            view.copy_(old)
        state[key] = _like(state[key], view)
        first += size
    return made


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


def _padded(tensor: Tensor) -> int:
    local = local_tensor(tensor)
    size = math.prod(local.shape) * local.element_size()
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _like(old: Tensor, local: Tensor) -> Tensor:
    if not is_sharded(old):
        return local
    kind: Any = type(old)
    made: Tensor = kind(local, old._spec, requires_grad=False)
    return made
