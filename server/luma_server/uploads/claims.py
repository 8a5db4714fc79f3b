"""One commit at a time for each checkpoint, whichever server makes it."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator

from luma_core.checkpoint.store import ABSENT, Store, Version
from luma_core.errors import ConcurrentSaveError
from luma_server.place import Root

_NAME = "claim.json"

STALE_SECONDS = 600.0
"""A claim that was not renewed for that long belongs to a server that is gone."""

RENEW_SECONDS = 60.0


def remove_empty(root: Root, run: str, step: str) -> None:
    """Remove the folder of a checkpoint, and that of its run, where nothing is in them."""
    root.store.folder(run).folder(step).remove_folder()
    root.store.folder(run).remove_folder()


class LostClaimError(ConcurrentSaveError):
    """Another server took over, as this one was silent for too long."""


@contextlib.contextmanager
def claimed(root: Root, run: str, step: str) -> Iterator[Callable[[], None]]:
    """Keep other commits and savers away from a checkpoint meanwhile.

    Local folders are locked. Elsewhere an object is the claim: it is created on the condition that
    there is none, and must be renewed by calling what this yields.

    Raises:
        ConcurrentSaveError: somebody else is at work there.
    """
    target = root.checkpoint(run, step)
    existed = root.folder is not None and (root.folder / run / step).exists()
    with target.exclusive() as locked:
        try:
            if locked:
                yield lambda: None
            else:
                with _claim(root.private("claims", run, step), f"{run}/{step}") as renew:
                    yield renew
        finally:
            if not existed:
                remove_empty(root, run, step)


@contextlib.contextmanager
def _claim(store: Store, place: str) -> Iterator[Callable[[], None]]:
    claim = _Claim(store, place)
    claim.take()
    try:
        yield claim.renew
    finally:
        claim.release()


class _Claim:
    def __init__(self, store: Store, place: str) -> None:
        self._store = store
        self._place = place
        self._version = ABSENT
        self._renewed = 0.0

    def take(self) -> None:
        found = self._store.version(_NAME)
        if found != ABSENT:
            written = self._store.modified(_NAME)
            if written is None or time.time() - written < STALE_SECONDS:
                raise self._busy()
        try:
            self._write(found)
        except ConcurrentSaveError as error:
            raise self._busy() from error

    def renew(self) -> None:
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        try:
            self._write(self._version)
        except ConcurrentSaveError as error:
            raise LostClaimError(f"{self._place}: another server went on with it.") from error

    def _write(self, expected: Version) -> None:
        with self._store.write(_NAME, expected=expected) as out:
            # Never the same bytes twice, for some stores name versions by content.
            out.write(json.dumps({"claim": secrets.token_hex(16)}).encode())
            out.commit()
        self._version = self._store.version(_NAME)
        self._renewed = time.monotonic()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if self._store.version(_NAME) == self._version:
                self._store.delete(_NAME)
                self._store.remove_folder()

    def _busy(self) -> ConcurrentSaveError:
        return ConcurrentSaveError(
            f"{self._place}: somebody else is committing there.", hint="Try again in a moment."
        )
