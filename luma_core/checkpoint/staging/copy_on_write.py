"""Copy-on-write of the state that an asynchronous save reads while steps change it."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from operator import attrgetter
from typing import Protocol

from torch import Tensor

from luma_core import changes
from luma_core.errors import StateChangedError
from luma_core.sharding import local_tensor

MAX_THREADS = 4
"""That copy at the same time."""

_POLL_SECONDS = 0.5

Job = Callable[[], object]
"""Copies some bytes; raises nothing."""


class GuardedTensor(Protocol):
    """A tensor whose present bytes are to be saved, whatever changes it later.

    Attributes:
        first: address of its first byte.
        stop: address behind its last.
        version: see `Version`.
    """

    first: int
    stop: int
    version: Version

    def jobs(self, first: int, stop: int) -> Iterator[Job]:
        """Yield what copies the bytes between two addresses, where that is to be done now."""
        ...

    def wait(self, first: int, stop: int) -> None:
        """Wait until those bytes are safe: the caller, or its current stream."""
        ...

    def copy_in_background(self) -> None:
        """Copy what is not safe yet, unless that is better left until a step needs it."""
        ...

    def close(self) -> None:
        """Wait for what is still at work on the tensor or its copy, and let the tensor go."""
        ...


class Version:
    """Tells whether a tensor was changed in place by somebody who did not say so.

    Args:
        name: of the tensor, for messages.
        tensor: a tensor, or a view of it.
        lock: of the save; a change that is announced while `check` looks is not taken for another.
    """

    def __init__(self, name: str, tensor: Tensor, lock: AbstractContextManager[object]) -> None:
        self.name = name
        self.storage = tensor.untyped_storage().data_ptr()
        self._lock = lock
        self._tensor: Tensor | None = None if tensor.is_inference() else tensor
        self._known = tensor._version if self._tensor is not None else 0

    def check(self) -> None:
        """Raise `StateChangedError` if the tensor was changed."""
        with self._lock:
            changed = self._tensor is not None and self._tensor._version != self._known
        if changed:
            raise StateChangedError(
                f"{self.name!r} was changed in place while an asynchronous save was reading it; "
                "nothing was saved.",
                hint="Wait for the save's result() before such a change, or call "
                "luma_core.checkpoint.before_change(tensors).",
            )

    def forget(self) -> None:
        """Take all changes for announced from here on."""
        with self._lock:
            self._tensor = None


class CopyOnWriteGuard:
    """The tensors that one asynchronous save has still to read, and that a step may change.

    A byte is *safe* once it was read by the save or copied. What the save reads, it reads into
    memory of its own, so that a step waits for the store only where nothing may be copied.

    Its locks guard bookkeeping only. When it is `over`, or has failed, nobody waits any more.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        # A finalizer of the garbage collector must not wait for locks, so it only sets this.
        self.abandoned = False
        self._guarded: list[GuardedTensor] = []
        self._of_storage: dict[int, list[Version]] = {}
        self._unsafe = 0
        self._working = 0
        self._failure: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def over(self) -> bool:
        """Whether it does not matter any more what becomes of the tensors."""
        return self._ended or self.abandoned or self._failure is not None

    def takes(self, first: int, stop: int) -> bool:
        """Return whether the bytes between two addresses are of no other guarded tensor."""
        place = bisect_right(self._guarded, first, key=_first)
        if place and self._guarded[place - 1].stop > first:
            return False
        return place == len(self._guarded) or stop <= self._guarded[place].first

    def add(self, guarded: GuardedTensor) -> None:
        """Guard one more tensor."""
        insort(self._guarded, guarded, key=_first)
        self._of_storage.setdefault(guarded.version.storage, []).append(guarded.version)
        self._unsafe += 1

    def begin(self, order: Sequence[GuardedTensor]) -> None:
        """Begin to watch for changes, then to copy asynchronously, in that order."""
        if not self._guarded:
            return
        thread = threading.Thread(target=self._copy_in_background, args=(order,), name="luma-copy")
        changes.add_reader(self)
        try:
            thread.start()
        except BaseException:
            # Steps would wait for it.
            changes.remove_reader(self)
            raise
        self._thread = thread

    def end(self) -> None:
        """Let everybody go on; returns when nobody uses copies or tensors any more."""
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        changes.remove_reader(self)
        if self._thread is not None:
            self._thread.join()
        with self.changed:
            while self._working:
                self.changed.wait()
        for guarded in self._guarded:
            guarded.close()
        self._guarded.clear()
        self._of_storage.clear()

    def before_change(self, tensors: Sequence[Tensor]) -> None:
        """Return when nothing of these tensors has still to be read."""
        if self.over:
            changes.remove_reader(self)
            return
        with self.working():
            found = [item for tensor in tensors for item in self._overlapping(tensor)]
            with self.changed:
                # At once: another thread's step may follow as soon as it sees them announced.
                for guarded, _, _ in found:
                    guarded.version.check()
                for storage in {guarded.version.storage for guarded, _, _ in found}:
                    for version in self._of_storage.pop(storage, ()):
                        version.forget()
            on_several_threads(
                [job for guarded, first, stop in found for job in guarded.jobs(first, stop)]
            )
            for guarded, first, stop in found:
                guarded.wait(first, stop)

    def _overlapping(self, tensor: Tensor) -> Iterator[tuple[GuardedTensor, int, int]]:
        first, stop = extent(tensor)
        place = max(bisect_right(self._guarded, first, key=_first) - 1, 0)
        while place < len(self._guarded) and self._guarded[place].first < stop:
            guarded = self._guarded[place]
            if guarded.stop > first:
                yield guarded, max(first, guarded.first), min(stop, guarded.stop)
            place += 1

    def working(self) -> _Working:
        """Return a ``with`` block whose errors are those of the save, and which `end` waits for."""
        return _Working(self)

    def wait_while(self, wanted: Callable[[], bool]) -> None:
        """Wait while that holds, within ``changed``, and as long as it matters."""
        while wanted() and not self.over:
            self.changed.wait(_POLL_SECONDS)

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure

    def safe(self) -> None:
        """Count one tensor that is safe and need not be looked after any more."""
        with self.changed:
            self._unsafe -= 1
            done = not self._unsafe
        if done:
            changes.remove_reader(self)

    def fail(self, error: BaseException) -> None:
        """Make the save fail, and let everybody go on."""
        with self.changed:
            self._failure = self._failure or error
            self.changed.notify_all()

    def _copy_in_background(self, order: Sequence[GuardedTensor]) -> None:
        with self.working():
            for guarded in order:
                guarded.copy_in_background()

    def _count(self, change: int) -> None:
        with self.changed:
            self._working += change
            self.changed.notify_all()


class _Working:
    def __init__(self, guard: CopyOnWriteGuard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._guard._count(1)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, Exception):
            self._guard.fail(error)
        self._guard._count(-1)
        return isinstance(error, Exception)


_first = attrgetter("first")


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and behind its last."""
    local = local_tensor(tensor)
    first = local.data_ptr()
    if not local.numel():
        return first, first
    steps = zip(local.shape, local.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps)
    return first, first + (last + 1) * local.element_size()


def on_several_threads(jobs: Sequence[Job]) -> None:
    """Do all jobs, on threads beside the caller's where there is more than one."""
    left = deque(jobs)
    threads = []
    for _ in range(min(os.cpu_count() or 1, MAX_THREADS, len(left)) - 1):
        thread = threading.Thread(target=_do, args=(left,), name="luma-copy")
        # While the interpreter shuts down no thread can be started.
        with suppress(RuntimeError):
            thread.start()
            threads.append(thread)
    _do(left)
    for thread in threads:
        thread.join()


def _do(left: deque[Job]) -> None:
    with suppress(IndexError):
        while True:
            left.popleft()()
