"""Saves that go on behind the caller: one thread, in order, which the process waits for."""

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

from luma_core.checkpoint.manifest import Manifest
from luma_core.errors import CheckpointError, LumaError

_log = logging.getLogger("luma")

MAX_IN_FLIGHT = 2
"""Each save in flight may hold a copy of the state."""


class SaveHandle:
    """A save that goes on behind the caller.

    Attributes:
        url: the folder.
    """

    def __init__(self, future: Future[Manifest], url: str) -> None:
        self.url = url
        self._future = future
        self._told = False

    def done(self) -> bool:
        """Return whether the save has ended, well or not."""
        return self._future.done()

    def result(self, timeout_seconds: float | None = None) -> Manifest:
        """Wait until the checkpoint is committed and return its manifest.

        Raises:
            TimeoutError: the save goes on after ``timeout_seconds``.
            LumaError: whatever `save` raises; the folder is as `save` says.
        """
        if not futures.wait([self._future], timeout_seconds).done:
            raise TimeoutError(f"{self.url}: the save goes on after {timeout_seconds} seconds")
        self._told = True
        return self._future.result()

    def has_untold_error(self) -> bool:
        """Return whether the save has failed and nobody was told so."""
        return not self._told and self.done() and self._future.exception() is not None

    def raise_again(self) -> None:
        """Raise the error of this save, which has failed, saying that it is an earlier one's."""
        try:
            self.result()
        except LumaError as error:
            told = type(error)(f"an earlier save behind training failed: {error.message}")
            told.hint = error.hint
            raise told from error
        except BaseException as error:
            raise CheckpointError(
                f"{self.url}: an earlier save behind training failed: "
                f"{type(error).__name__}: {error}."
            ) from error


class _Saves:
    """The saves in flight of this process, oldest first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handles: list[SaveHandle] = []
        self.pool: ThreadPoolExecutor | None = None

    def in_flight(self) -> list[SaveHandle]:
        with self.lock:
            return [handle for handle in self.handles if not handle.done()]

    def raise_untold(self) -> None:
        with self.lock:
            failed = next((h for h in self.handles if h.has_untold_error()), None)
            self.handles = [h for h in self.handles if h.has_untold_error() or not h.done()]
        if failed is not None:
            failed.raise_again()


_saves = _Saves()


def finish() -> None:
    """Wait until no save is in flight."""
    for handle in _saves.in_flight():
        _wait(handle)


def wait_for_saves() -> None:
    """Wait until all saves behind training have ended, and raise what one of them failed with.

    At the end of a script this makes a failure of the last save one of the script. Without it the
    failure is printed when the process ends, whose exit code stays as it is.

    Raises:
        LumaError: whatever `save` raises, where nobody was told so yet.
    """
    before_save(wait=True)


def before_save(*, wait: bool) -> None:
    """Let earlier saves end, all or all but one, and raise what one of them failed with."""
    room = 1 if wait else MAX_IN_FLIGHT
    while len(flying := _saves.in_flight()) >= room:
        _wait(flying[0])
    _saves.raise_untold()


def _wait(handle: SaveHandle) -> None:
    handle._future.exception()


def submit(run: Callable[[], Manifest], url: str) -> SaveHandle:
    """Run a save after those that were submitted before it."""
    with _saves.lock:
        if _saves.pool is None:
            _saves.pool = ThreadPoolExecutor(1, thread_name_prefix="luma-save")
        handle = SaveHandle(_saves.pool.submit(_run, run), url)
        _saves.handles.append(handle)
    return handle


def _run(run: Callable[[], Manifest]) -> Manifest:
    try:
        return run()
    except BaseException as error:
        # The error may be kept for long, and its frames hold the copy of the state.
        traceback.clear_frames(error.__traceback__)
        del run
        raise


def _finish_and_tell() -> None:
    finish()
    for handle in _saves.handles:
        if handle.has_untold_error():
            told = f"{handle.url}: the save failed: {handle._future.exception()}"
            # Nothing else tells of it: the process ends with the exit code it would have had.
            print(f"luma: error: {told}", file=sys.stderr, flush=True)
            if _log.hasHandlers():
                _log.error(told)


_inherited: list[_Saves] = []


def _forget() -> None:
    global _saves
    # What waits there has pinned memory: CUDA ends a forked child that lets go of it.
    _inherited.append(_saves)
    _saves = _Saves()


# The threads that a save needs cannot be started once concurrent.futures has shut down, which is
# before atexit; what is registered later runs earlier.
threading._register_atexit(_finish_and_tell)  # type: ignore[attr-defined]

# A forked child has the list of saves but not the thread that does them.
os.register_at_fork(after_in_child=_forget)
