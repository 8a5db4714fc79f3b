"""The executor of asynchronous saves: one thread, in order, which the process waits for."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor

from luma_core.checkpoint.format.manifest import Manifest
from luma_core.errors import CheckpointError, LumaError, some_names

_log = logging.getLogger("luma")

MAX_IN_FLIGHT = 2
"""Each save in flight may hold a copy of the state."""


class SaveHandle:
    """An asynchronous save, which goes on while training does.

    Attributes:
        url: the folder.
        name: what errors call the save: its step, where it has one, and the folder.
    """

    def __init__(self, future: Future[Manifest], url: str, name: str) -> None:
        self.url = url
        self.name = name
        self._future = future
        self._told = False

    def done(self) -> bool:
        """Return whether the save has ended, well or not."""
        return self._future.done()

    def result(self, timeout_seconds: float | None = None) -> Manifest:
        """Wait until the checkpoint is committed and return its manifest.

        Raises:
            TimeoutError: the save goes on after ``timeout_seconds``.
            LumaError: whatever `save` raises, with the step; the folder is as `save` says.
        """
        if not futures.wait([self._future], timeout_seconds).done:
            raise TimeoutError(f"{self.url}: the save goes on after {timeout_seconds} seconds")
        self._told = True
        if isinstance(self._future.exception(), LumaError):
            raise self.failure()
        return self._future.result()

    def has_untold_error(self) -> bool:
        """Return whether the save has failed and nobody was told so."""
        return not self._told and self.done() and self._future.exception() is not None

    def raise_again(self, hint: str) -> None:
        """Raise the error of this save, which has failed, saying that it is an earlier one's."""
        self._told = True
        raise self.failure("an earlier asynchronous save failed: ", hint)

    def failure(self, before: str = "", hint: str = "") -> LumaError:
        """Return what this save, which has failed, failed with, as an error that names the save.

        Args:
            before: what its message begins with.
            hint: what is added to that of the error.
        """
        error = self._future.exception()
        known = error if isinstance(error, LumaError) else None
        kind = CheckpointError if known is None else type(known)
        message = f"{type(error).__name__}: {error}." if known is None else known.message
        told = kind(
            f"{before}{self.name}: {message.removeprefix(f'{self.url}: ')}",
            hint=f"{'' if known is None else known.hint} {hint}".strip(),
        )
        if isinstance(known, OSError) and isinstance(told, OSError):
            told.errno = known.errno
        told.__cause__ = error
        return told


class _AsyncExecutor:
    """The saves in flight of this process, oldest first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handles: list[SaveHandle] = []
        self.pool: ThreadPoolExecutor | None = None

    def in_flight(self) -> list[SaveHandle]:
        with self.lock:
            return [handle for handle in self.handles if not handle.done()]

    def raise_untold(self, hint: str = "") -> None:
        with self.lock:
            # In this order: a save may end between the two questions.
            self.handles = [h for h in self.handles if not h.done() or h.has_untold_error()]
            failed = [handle for handle in self.handles if handle.has_untold_error()]
        if failed:
            others = [handle.name for handle in failed[1:]]
            more = f"Failed as well, and raised next: {some_names(others)}." if others else ""
            failed[0].raise_again(f"{hint} {more}".strip())


_executor = _AsyncExecutor()


def finish() -> None:
    """Wait until no save is in flight."""
    for handle in _executor.in_flight():
        _wait(handle)


def wait_for_saves() -> None:
    """Wait until all asynchronous saves have ended, and raise what one of them failed with.

    At the end of a script this makes a failure of the last save one of the script. Without it the
    failure is printed when the process ends, whose exit code stays as it is.

    Raises:
        LumaError: whatever `save` raises, where nobody was told so yet.
    """
    finish()
    _executor.raise_untold()


def before_save(*, wait: bool) -> None:
    """Let earlier saves end, all or all but one, and raise what one of them failed with."""
    room = 1 if wait else MAX_IN_FLIGHT
    while len(flying := _executor.in_flight()) >= room:
        _wait(flying[0])
    _executor.raise_untold("Nothing was saved by this call: save again.")


def _wait(handle: SaveHandle) -> None:
    handle._future.exception()


def submit(run: Callable[[], Manifest], url: str, step: int | None = None) -> SaveHandle:
    """Run a save after those that were submitted before it.

    Args:
        run: saves.
        url: the folder, for messages.
        step: of a run, likewise.
    """
    name = url if step is None else f"step {step} in {url}"
    with _executor.lock:
        if _executor.pool is None:
            _executor.pool = ThreadPoolExecutor(1, thread_name_prefix="luma-save")
        handle = SaveHandle(_executor.pool.submit(_run, run, name), url, name)
        _executor.handles.append(handle)
    return handle


def _run(run: Callable[[], Manifest], name: str) -> Manifest:
    try:
        return run()
    except BaseException as error:
        # The error may be kept for long, and its frames hold the copy of the state.
        traceback.clear_frames(error.__traceback__)
        if not isinstance(error, LumaError):
            error.add_note(f"{name}: the asynchronous save failed with this.")
        del run
        raise


def _finish_and_tell() -> None:
    finish()
    for handle in _executor.handles:
        if handle.has_untold_error():
            told = f"{handle.url}: the save failed: {handle.failure()}"
            # Nothing else tells of it: the process ends with the exit code it would have had.
            print(f"luma: error: {told}", file=sys.stderr, flush=True)
            if _log.hasHandlers():
                _log.error(told)


_inherited: list[_AsyncExecutor] = []


def _forget() -> None:
    global _executor
    # What waits there has pinned memory: CUDA ends a forked child that lets go of it.
    _inherited.append(_executor)
    _executor = _AsyncExecutor()


# The threads that a save needs cannot be started once concurrent.futures has shut down, which is
# before atexit; what is registered later runs earlier.
threading._register_atexit(_finish_and_tell)  # type: ignore[attr-defined]

# A forked child has the list of saves but not the thread that does them.
os.register_at_fork(after_in_child=_forget)
