"""The staging pool: memory for copies of what is saved, reused by later saves."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from luma_core.checkpoint.staging.memory import new_tensor, touch

Kind = tuple[torch.dtype, tuple[int, ...], bool]
"""Dtype and shape of a copy, and whether its memory is pinned."""


def kind_of(tensor: Tensor) -> Kind:
    """Return the kind of memory that a copy of a tensor needs; pinned for tensors on CUDA."""
    return tensor.dtype, tuple(tensor.shape), tensor.is_cuda


class StagingPool:
    """The memory for the copies of one save; may be used by several threads.

    It stays after the save for the next one of the same owner, because the first use of new memory
    takes longer than the copying. One set is kept for each owner, as long as it lives; of two saves
    in flight, the second makes a set of its own. `provide` makes one before the first save.

    Args:
        owner: what is saved; no memory is kept where it cannot be referred to weakly.
    """

    def __init__(self, owner: object) -> None:
        self._owner = _reference(owner)
        self._lock = threading.Lock()
        self._free = _idle.take(self._owner)
        self._used: _Buffers = []
        self._expected: Counter[Kind] = Counter()

    def expect(self, kind: Kind) -> None:
        """Count a copy that may be made later."""
        self._expected[kind] += 1

    def trim(self) -> None:
        """Free kept memory that none of the expected copies will use."""
        with self._lock:
            for kind, free in self._free.items():
                del free[self._expected[kind] :]

    def new(self, kind: Kind) -> Tensor:
        """Return memory for one copy, contiguous."""
        with self._lock:
            free = self._free[kind]
            copy = free.pop() if free else None
        if copy is None:
            copy = _new(kind)
        with self._lock:
            self._used.append((kind, copy))
        return copy

    def release(self) -> None:
        """Keep the memory for the next save; the copies must not be read from here on."""
        with self._lock:
            some, self._used = self._used, []
            some += [(kind, copy) for kind, free in self._free.items() for copy in free]
            self._free.clear()
        _idle.give(self._owner, some)


def _new(kind: Kind) -> Tensor:
    dtype, shape, pinned = kind
    if pinned:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
    return new_tensor(shape, dtype)


def provide(owner: object, kinds: Iterable[Kind]) -> None:
    """Get the memory for copies of these kinds, on a thread that nobody waits for.

    The owner's next `StagingPool` takes what is there by then, and gets the rest itself.
    """
    reference = _reference(owner)
    missing = Counter(kinds)
    if (some := _idle.begin(reference)) is not None:
        missing.subtract(Counter(kind for kind, _ in some))
        arguments = (_idle, reference, some, list((+missing).elements()))
        threading.Thread(target=_provide, args=arguments, name="luma-provide").start()


def _provide(
    idle: _IdleBuffers, reference: _Reference, some: _Buffers, missing: list[Kind]
) -> None:
    for kind in missing:
        if not threading.main_thread().is_alive():
            return
        copy = _new(kind)
        _, _, pinned = kind
        if not pinned:
            touch(copy)
        if not idle.add(reference, some, (kind, copy)):
            return


_Reference = weakref.ref[object] | None
_Buffers = list[tuple[Kind, Tensor]]


def _reference(owner: object) -> _Reference:
    try:
        hash(owner)
        return weakref.ref(owner)
    except TypeError:
        return None


class _IdleBuffers:
    """Memory that no save uses, by owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: weakref.WeakKeyDictionary[object, _Buffers] = weakref.WeakKeyDictionary()

    def take(self, reference: _Reference) -> defaultdict[Kind, list[Tensor]]:
        owner = reference and reference()
        with self._lock:
            some = self._of.pop(owner, []) if owner is not None else []
        free: defaultdict[Kind, list[Tensor]] = defaultdict(list)
        for kind, copy in some:
            free[kind].append(copy)
        return free

    def give(self, reference: _Reference, some: _Buffers) -> None:
        owner = reference and reference()
        if owner is not None:
            with self._lock:
                self._of[owner] = some

    def all_buffers(self) -> list[_Buffers]:
        """Return all that is kept, without the lock."""
        return list(self._of.values())

    def begin(self, reference: _Reference) -> _Buffers | None:
        """Return the list to `add` to, with what is kept; whoever had an earlier one is done."""
        owner = reference and reference()
        if owner is None:
            return None
        with self._lock:
            some = self._of[owner] = list(self._of.get(owner, ()))
        return some

    def add(self, reference: _Reference, some: _Buffers, copy: tuple[Kind, Tensor]) -> bool:
        """Keep one more in ``some`` unless a save took them; return whether it did not."""
        owner = reference and reference()
        with self._lock:
            wanted = owner is not None and self._of.get(owner) is some
            if wanted:
                some.append(copy)
            return wanted


_idle = _IdleBuffers()
_inherited: list[_Buffers] = []


def _forget() -> None:
    global _idle
    # CUDA ends a forked child that lets go of pinned memory.
    _inherited.extend(_idle.all_buffers())
    _idle = _IdleBuffers()


# Another thread of the parent may have held the lock, and the child has memory of its own.
os.register_at_fork(after_in_child=_forget)
