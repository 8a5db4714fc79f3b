"""Copies of what is to be saved, so that training can go on; their memory is used again."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from luma_core.checkpoint.compression import Bytes
from luma_core.checkpoint.manifest import Manifest
from luma_core.checkpoint.memory import new_tensor, touch
from luma_core.checkpoint.plan import Plan
from luma_core.checkpoint.shard import PlannedTensor

_MAX_THREADS = 4
_PARALLEL_BYTES = 1 << 20

_Kind = tuple[torch.dtype, tuple[int, ...], bool]
"""Dtype and shape of a copy, and whether its memory is pinned."""


class Staging:
    """The copies of one save.

    Their memory stays after the save for the next one of the same owner, because the first use of
    new memory takes longer than the copying. One set is kept for each owner, as long as it lives;
    of two saves in flight, the second makes a set of its own. `provide` makes one before the first
    save.

    Args:
        owner: what is saved; no memory is kept where it cannot be referred to weakly.
    """

    def __init__(self, owner: object) -> None:
        self._owner = _reference(owner)
        self._free = _kept.take(self._owner)
        self._used: _Copies = []

    def staged(self, plan: Plan) -> Plan:
        """Return ``plan`` with a copy of every tensor, independent of what training changes next.

        Tensors of a CUDA device are copied to pinned memory on a stream beside the current one.
        """
        with _Copier() as copier:
            shards = {
                kind: [[self._copied(tensor, copier) for tensor in shard] for shard in some]
                for kind, some in plan.shards.items()
            }
        self._free.clear()
        return replace(plan, shards=shards)

    def release(self) -> None:
        """Keep the copies' memory for the next save; they must not be read from here on."""
        used, self._used = self._used, []
        _kept.give(self._owner, used)

    def _copied(self, planned: PlannedTensor, copier: _Copier) -> PlannedTensor:
        tensor = planned.checked().detach()
        kind = _kind(tensor)
        free = self._free[kind]
        copy = free.pop() if free else _new(kind)
        self._used.append((kind, copy))
        copier.copy(tensor, copy)
        return replace(planned, load=lambda: copy)


class _Copier:
    """Copies tensors to the CPU, several at once; all are copied when its ``with`` block ends."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
        self._begun: list[Future[None]] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()
        for stream in self._streams.values():
            stream.synchronize()
        for copied in self._begun:
            copied.result()

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy ``source`` to ``target``, a contiguous tensor of its dtype and shape."""
        if source.is_cuda:
            with torch.cuda.stream(self._stream(source.device)):
                target.copy_(source, non_blocking=True)
        elif source.nbytes < _PARALLEL_BYTES or not _has_plain_bytes(source):
            target.copy_(source)
        else:
            # Twice as fast as torch's own, which reads memory that it is about to overwrite.
            self._begun.append(self._pool.submit(np.copyto, _bytes(target), _bytes(source)))

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        return self._streams[device]


def _has_plain_bytes(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.is_contiguous()
    return plain and not tensor.is_neg() and not tensor.is_conj()


def _bytes(tensor: Tensor) -> Bytes:
    found: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return found


def released(run: Callable[[], Manifest], staging: Staging) -> Manifest:
    """Do what is left of a save and release its copies, whether it succeeds or not."""
    try:
        return run()
    finally:
        staging.release()


def _kind(tensor: Tensor) -> _Kind:
    return tensor.dtype, tuple(tensor.shape), tensor.is_cuda


def _new(kind: _Kind) -> Tensor:
    dtype, shape, pinned = kind
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return new_tensor(shape, dtype)


def provide(owner: object, plan: Plan) -> None:
    """Get the memory that copies of ``plan`` need, on a thread that nobody waits for.

    The owner's next `Staging` takes what is there by then, and gets the rest itself.
    """
    reference = _reference(owner)
    tensors = (tensor for some in plan.shards.values() for shard in some for tensor in shard)
    missing = Counter(_kind(planned.checked()) for planned in tensors)
    if (copies := _kept.begin(reference)) is not None:
        missing.subtract(Counter(kind for kind, _ in copies))
        arguments = (_kept, reference, copies, list((+missing).elements()))
        threading.Thread(target=_provide, args=arguments, name="luma-provide").start()


def _provide(kept: _Kept, reference: _Reference, copies: _Copies, missing: list[_Kind]) -> None:
    for kind in missing:
        if not threading.main_thread().is_alive():
            return
        copy = _new(kind)
        _, _, pinned = kind
        if not pinned:
            touch(copy)
        if not kept.add(reference, copies, (kind, copy)):
            return


_Reference = weakref.ref[object] | None
_Copies = list[tuple[_Kind, Tensor]]


def _reference(owner: object) -> _Reference:
    try:
        hash(owner)
        return weakref.ref(owner)
    except TypeError:
        return None


class _Kept:
    """Copies that no save uses, by owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: weakref.WeakKeyDictionary[object, _Copies] = weakref.WeakKeyDictionary()

    def take(self, reference: _Reference) -> defaultdict[_Kind, list[Tensor]]:
        owner = reference and reference()
        with self._lock:
            copies = self._of.pop(owner, []) if owner is not None else []
        free: defaultdict[_Kind, list[Tensor]] = defaultdict(list)
        for kind, copy in copies:
            free[kind].append(copy)
        return free

    def give(self, reference: _Reference, copies: _Copies) -> None:
        owner = reference and reference()
        if owner is not None:
            with self._lock:
                self._of[owner] = copies

    def begin(self, reference: _Reference) -> _Copies | None:
        """Return the list to `add` to, with what is kept; whoever had an earlier one is done."""
        owner = reference and reference()
        if owner is None:
            return None
        with self._lock:
            copies = self._of[owner] = list(self._of.get(owner, ()))
        return copies

    def add(self, reference: _Reference, copies: _Copies, copy: tuple[_Kind, Tensor]) -> bool:
        """Keep one more in ``copies`` unless a save took them; return whether it did not."""
        owner = reference and reference()
        with self._lock:
            wanted = owner is not None and self._of.get(owner) is copies
            if wanted:
                copies.append(copy)
            return wanted


_kept = _Kept()


def _forget() -> None:
    global _kept
    _kept = _Kept()


# Another thread of the parent may have held the lock, and the child has memory of its own.
os.register_at_fork(after_in_child=_forget)
