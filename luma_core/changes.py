"""Says that tensors are about to change, to whoever still reads what is in them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from luma_core.errors import ConfigurationError


class Reader(Protocol):
    """Reads tensors that others may change."""

    def before_change(self, tensors: Sequence[Tensor]) -> None:
        """Return when changes of these tensors' memory cannot be seen any more; raises nothing."""
        ...


class _Readers:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all: tuple[Reader, ...] = ()


_readers = _Readers()


def add_reader(reader: Reader) -> None:
    """Tell a reader of changes from here on."""
    with _readers.lock:
        _readers.all = (*_readers.all, reader)


def remove_reader(reader: Reader) -> None:
    """Tell a reader no more; does nothing where it is told nothing already."""
    with _readers.lock:
        _readers.all = tuple(other for other in _readers.all if other is not reader)


def anybody_reads() -> bool:
    """Return whether `before_change` would do anything at all."""
    return bool(_readers.all)


def before_change(tensors: Iterable[Tensor]) -> None:
    """Let asynchronous saves have what is in tensors of an optimizer's state.

    Optimizers call it in each step, for what the step changes. Whoever else changes state in place
    while ``save(..., wait=False)`` is under way calls it before. What was not saved yet is copied,
    or, of state on disk, waited for. On CUDA devices the current stream waits, not the caller.

    Args:
        tensors: values of ``optimizer.state[p]``, or views of them; others do no harm.

    Raises:
        ConfigurationError: something else than tensors was given.
    """
    if isinstance(tensors, Tensor | Mapping) or not isinstance(tensors, Iterable):
        raise _wrong(tensors)
    readers = _readers.all
    if not readers:
        return
    tensors = list(tensors)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise _wrong(tensor)
    for reader in readers:
        reader.before_change(tensors)


def _wrong(given: object) -> ConfigurationError:
    return ConfigurationError(
        f"before_change takes tensors; it was given a {type(given).__name__}.",
        hint="Give a list of them, for example before_change(optimizer.state[p].values()).",
    )


_inherited: list[_Readers] = []


def _forget() -> None:
    global _readers
    # Readers have pinned memory: CUDA ends a forked child that lets go of it.
    _inherited.append(_readers)
    _readers = _Readers()


# The threads that read are the parent's, and so are the locks that they held.
os.register_at_fork(after_in_child=_forget)
