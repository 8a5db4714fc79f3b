"""One at a time at one thing, whichever server it is that works on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.store import ABSENT, Store, Version
from luma_core.errors import ConcurrentSaveError
from luma_server.catalog.place import Root

_log = logging.getLogger(__name__)

CLAIM_NAME = "claim.json"

STALE_SECONDS = 600.0
"""A claim on a checkpoint that was not renewed for that long is of a server that is gone."""

_CLAIMS = "claims"
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
    there is none, and renewed by a thread. What this yields is to be called between two things
    that only one may do: it raises `LostClaimError` where the claim could not be kept.

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
                claims = root.private(_CLAIMS, run, step)
                with _claim(claims, f"{run}/{step}", STALE_SECONDS) as check:
                    yield check
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
            with _claim(store, what, stale_seconds) as check:
                yield check
            return
        try:
            yield lambda: None
        finally:
            with contextlib.suppress(OSError):
                store.remove_folder()


def is_held(store: Store, *, stale_seconds: float) -> bool:
    """Return whether somebody holds a folder as `held` does; changes nothing there.

    Args:
        store: the folder.
        stale_seconds: how long a claim holds that is not renewed.

    Raises:
        OSError: the store failed.
    """
    written = store.modified(CLAIM_NAME)
    if written is not None:
        return time.time() - written < stale_seconds
    if not isinstance(store, LocalStore):
        return store.version(CLAIM_NAME) != ABSENT
    try:
        descriptor = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that several may look at the same time.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        # Where there are no locks, whoever holds it would have written a claim.
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def remove_left(store: Store, *, stale_seconds: float) -> None:
    """Remove what is left below a folder of claims whose holders are gone.

    Args:
        store: holds a folder for each claim.
        stale_seconds: how long a claim holds that is not renewed.

    Raises:
        OSError: the store failed.
    """
    for name in store.folders():
        one = store.folder(name)
        with (
            contextlib.suppress(ConcurrentSaveError),
            held(one, name, stale_seconds=stale_seconds),
        ):
            one.discard_leftovers(older_than_seconds=stale_seconds)


def sweep_claims(root: Root) -> None:
    """Remove what is left of claims on checkpoints whose holders are gone.

    Raises:
        OSError: the store failed.
    """
    claims = root.private(_CLAIMS)
    for run in claims.folders():
        remove_left(claims.folder(run), stale_seconds=STALE_SECONDS)
        claims.folder(run).remove_folder()


@contextlib.contextmanager
def _claim(store: Store, what: str, stale_seconds: float) -> Iterator[Callable[[], None]]:
    claim = _Claim(store, what, stale_seconds)
    claim.take()
    try:
        yield claim.check
    finally:
        claim.release()


class _Claim:
    def __init__(self, store: Store, what: str, stale_seconds: float) -> None:
        self._store = store
        self._what = what
        self._stale_seconds = stale_seconds
        self._version = ABSENT
        self._renewed = 0.0
        self._lost = False
        self._released = threading.Event()
        # A single call to the store, such as a copy within it, may take longer than a claim holds.
        self._renewing = threading.Thread(target=self._renew_until_released, daemon=True)

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
        self._renewing.start()

    def check(self) -> None:
        if self._lost or time.monotonic() - self._renewed > self._stale_seconds:
            raise LostClaimError(f"{self._what}: another server went on with it.")

    def _renew_until_released(self) -> None:
        while not self._released.wait(self._stale_seconds / _RENEWALS):
            try:
                self._write(self._version)
            except (ConcurrentSaveError, FileNotFoundError):
                self._lost = True
                return
            except OSError as error:
                _log.warning("a claim was not renewed: %s", error)

    def _write(self, expected: Version) -> None:
        began = time.monotonic()
        with self._store.write(CLAIM_NAME, expected=expected) as out:
            # Never the same bytes twice, for some stores name versions by content.
            out.write(json.dumps({"claim": secrets.token_hex(16)}).encode())
            out.commit()
        self._version = self._store.version(CLAIM_NAME)
        self._renewed = began

    def release(self) -> None:
        self._released.set()
        self._renewing.join()
        with contextlib.suppress(OSError):
            if self._store.version(CLAIM_NAME) == self._version:
                self._store.delete(CLAIM_NAME)
                self._store.remove_folder()

    def _busy(self) -> ConcurrentSaveError:
        return ConcurrentSaveError(
            f"{self._what}: somebody else is at work there.", hint="Try again in a moment."
        )
