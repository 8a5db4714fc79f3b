"""One at a time at one thing, whichever server it is that works on it."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator

from luma_core.checkpoint.store import ABSENT, Store, Version
from luma_core.errors import ConcurrentSaveError
from luma_server.place import Root

CLAIM_NAME = "claim.json"

STALE_SECONDS = 600.0
"""A claim on a checkpoint that was not renewed for that long is of a server that is gone."""

_RENEWALS = 10
"""How often a claim is renewed before it would be stale."""


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
                claims = root.private("claims", run, step)
                with _claim(claims, f"{run}/{step}", STALE_SECONDS) as renew:
                    yield renew
        finally:
            if not existed:
                remove_empty(root, run, step)


@contextlib.contextmanager
def held(store: Store, what: str, *, stale_seconds: float) -> Iterator[Callable[[], None]]:
    """Keep others away from what a folder of the server's own stands for.

    The same as `claimed`, but nothing is in the folder and nothing is left of it.

    Args:
        store: the folder.
        what: what it stands for, for messages.
        stale_seconds: how long a claim holds that is not renewed.

    Raises:
        ConcurrentSaveError: somebody else is at work.
    """
    with store.exclusive() as locked:
        if not locked:
            with _claim(store, what, stale_seconds) as renew:
                yield renew
            return
        try:
            yield lambda: None
        finally:
            with contextlib.suppress(OSError):
                store.remove_folder()


@contextlib.contextmanager
def _claim(store: Store, what: str, stale_seconds: float) -> Iterator[Callable[[], None]]:
    claim = _Claim(store, what, stale_seconds)
    claim.take()
    try:
        yield claim.renew
    finally:
        claim.release()


class _Claim:
    def __init__(self, store: Store, what: str, stale_seconds: float) -> None:
        self._store = store
        self._what = what
        self._stale_seconds = stale_seconds
        self._version = ABSENT
        self._renewed = 0.0

    def take(self) -> None:
        found = self._store.version(CLAIM_NAME)
        if found != ABSENT:
            written = self._store.modified(CLAIM_NAME)
            if written is None or time.time() - written < self._stale_seconds:
                raise self._busy()
        try:
            self._write(found)
        except ConcurrentSaveError as error:
            raise self._busy() from error

    def renew(self) -> None:
        if time.monotonic() - self._renewed < self._stale_seconds / _RENEWALS:
            return
        try:
            self._write(self._version)
        except ConcurrentSaveError as error:
            raise LostClaimError(f"{self._what}: another server went on with it.") from error

    def _write(self, expected: Version) -> None:
        with self._store.write(CLAIM_NAME, expected=expected) as out:
            # Never the same bytes twice, for some stores name versions by content.
            out.write(json.dumps({"claim": secrets.token_hex(16)}).encode())
            out.commit()
        self._version = self._store.version(CLAIM_NAME)
        self._renewed = time.monotonic()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if self._store.version(CLAIM_NAME) == self._version:
                self._store.delete(CLAIM_NAME)
                self._store.remove_folder()

    def _busy(self) -> ConcurrentSaveError:
        return ConcurrentSaveError(
            f"{self._what}: somebody else is at work there.", hint="Try again in a moment."
        )
