"""The checkpoints of one run: numbered steps, which are kept, and what is cleared away."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Unpack, overload

from torch import nn

from luma_core.checkpoint import background
from luma_core.checkpoint.background import SaveHandle
from luma_core.checkpoint.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.folder import GRACE_SECONDS, read_manifest
from luma_core.checkpoint.loading import LoadableState, LoadedCheckpoint, load
from luma_core.checkpoint.manifest import Manifest
from luma_core.checkpoint.names import INDEX_NAME, MANIFEST_NAME, shard_generation
from luma_core.checkpoint.plan import SavableState
from luma_core.checkpoint.reader import Checkpoint, Progress, open
from luma_core.checkpoint.shard import written_by_us
from luma_core.checkpoint.store import Place, Store, open_store, storage_errors
from luma_core.checkpoint.writer import SaveOptions, prepared
from luma_core.codecs.base import is_number_in
from luma_core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ConfigurationError,
    UnknownCodecError,
)

_log = logging.getLogger("luma")

STEP_NAME = "luma-step.json"
"""Written into a step's folder before anything else: the proof that a manager began it."""

_MAX_MARK_BYTES = 1000
_STEP = re.compile(r"\d{8,}")


class CheckpointManager:
    """Checkpoints of one run under ``{root}/{step:08d}``.

    A step exists once its manifest is committed, so `latest` never names an unfinished one. Steps
    are removed only where a mark in their folder says that a manager saved them; the manifest goes
    first, and only files that it lists, or that bear our mark, go with it.

    Args:
        root: the run's folder, as `save` takes it; steps are folders inside.
        keep_last: how many of the latest steps are kept. All steps are kept where neither this nor
            ``keep_every`` is given.
        keep_every: steps divisible by it are kept.
        pinned: steps that are kept, integers of 0 or more.
        grace_seconds: unfinished steps to which nothing was written for that long are removed.

    Raises:
        ConfigurationError: an option has a value that cannot work.
        StorageError: no store handles that kind of place.
    """

    def __init__(
        self,
        root: Place,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        pinned: Iterable[int] = (),
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        for name, value in (("keep_last", keep_last), ("keep_every", keep_every)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(f"{name}={value!r} must be a positive integer or None.")
        pinned = _checked_steps(pinned)
        if not is_number_in(grace_seconds, 0):
            raise ConfigurationError(
                f"grace_seconds={grace_seconds!r} must be a number of 0 or more."
            )
        self._root = open_store(root)
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._pinned = pinned
        self._grace_seconds = grace_seconds
        self._collected = False
        self._begun = -1
        self.url = self._root.url

    def store(self, step: int) -> Store:
        """Return the folder of a step, which need not exist.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
        """
        if type(step) is not int or step < 0:
            raise ConfigurationError(f"step={step!r} must be an integer of 0 or more.")
        return self._root.folder(f"{step:08d}")

    def steps(self) -> list[int]:
        """Return all finished steps, in order.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(self.url):
            return [step for step in self._folders() if self._is_finished(self.store(step))]

    def latest(self) -> int | None:
        """Return the last finished step, or ``None`` where there is none yet.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(self.url):
            folders = reversed(self._folders())
            return next((step for step in folders if self._is_finished(self.store(step))), None)

    def open(self, step: int | None = None) -> Checkpoint:
        """Open a step, the latest by default; raises what `luma_core.checkpoint.open` does."""
        return open(self._existing(step))

    def load(
        self,
        step: int | None = None,
        *,
        optimizer: LoadableState | None = None,
        model: nn.Module | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        progress: Progress | None = None,
    ) -> LoadedCheckpoint:
        """Load a step, the latest by default; else like `luma_core.checkpoint.load`.

        Saves in flight of this process end first.

        Raises:
            CheckpointNotFoundError: there is no finished step, or not that one.
        """
        background.finish()
        return load(
            self._existing(step),
            optimizer=optimizer,
            model=model,
            max_memory_bytes=max_memory_bytes,
            progress=progress,
        )

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: SavableState,
        wait: Literal[True] = True,
        **options: Unpack[SaveOptions],
    ) -> Manifest: ...

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: SavableState,
        wait: bool,
        **options: Unpack[SaveOptions],
    ) -> Manifest | SaveHandle: ...

    def save(
        self,
        step: int,
        *,
        optimizer: SavableState,
        wait: bool = True,
        **options: Unpack[SaveOptions],
    ) -> Manifest | SaveHandle:
        """Save a step like `luma_core.checkpoint.save`, then remove what need not be kept.

        ``options`` are those of `luma_core.checkpoint.save`. The first save of a manager also
        collects garbage. A failure to remove is no error but a warning in the log.

        Raises:
            ConfigurationError: a later step exists. After going back to an earlier step, `rewind`
                to it first: `latest` would go on naming the branch that was left.
        """
        store = self.store(step)
        with storage_errors(self.url):
            latest = max(self._begun, self.latest() or 0)
        if step < latest:
            raise ConfigurationError(
                f"step={step} is before step {latest}, which {self.url} holds already.",
                hint="To go on from an earlier step, remove those after it: manager.rewind(step).",
            )
        self._begun = step
        run = prepared(store, optimizer=optimizer, wait=wait, **options)
        save_and_clear = partial(self._save_and_clear, store, step, run)
        return save_and_clear() if wait else background.submit(save_and_clear, store.url)

    def _save_and_clear(self, store: Store, step: int, run: Callable[[], Manifest]) -> Manifest:
        with storage_errors(store.url):
            _mark(store, step)
        manifest = run()
        self._clear()
        return manifest

    def rewind(self, step: int) -> list[int]:
        """Remove all finished steps after ``step``, pinned ones too; return them.

        Saves in flight of this process end first.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
            StorageError: the store failed.
        """
        self.store(step)
        background.finish()
        self._begun = -1
        with storage_errors(self.url):
            later = [found for found in self.steps() if found > step]
            return [found for found in later if self._remove(found, finished=True)]

    def prune(self) -> list[int]:
        """Remove the finished steps that need not be kept; return them.

        Raises:
            StorageError: the store failed.
        """
        if self._keep_last is None and self._keep_every is None:
            return []
        with storage_errors(self.url):
            steps = self.steps()
            doomed = [step for step in steps if not self._is_kept(step, steps)]
            return [step for step in doomed if self._remove(step, finished=True)]

    def collect_garbage(self) -> list[int]:
        """Remove steps that were begun, not finished and not written to for a while; return them.

        Also removes temporary files and uploads of that age from all steps.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(self.url):
            return [step for step in self._folders() if self._remove(step, finished=False)]

    def _existing(self, step: int | None) -> Store:
        found = self.latest() if step is None else step
        if found is None:
            raise CheckpointNotFoundError(f"{self.url}: no finished step here.")
        return self.store(found)

    def _folders(self) -> list[int]:
        names = (name for name in self._root.folders() if _STEP.fullmatch(name))
        return sorted(int(name) for name in names if f"{int(name):08d}" == name)

    def _is_finished(self, store: Store) -> bool:
        return store.size(MANIFEST_NAME) is not None

    def _is_kept(self, step: int, steps: list[int]) -> bool:
        last = steps[-(self._keep_last or 1) :]
        by_number = self._keep_every is not None and step % self._keep_every == 0
        return step in last or by_number or step in self._pinned

    def _clear(self) -> None:
        try:
            self.prune()
            if not self._collected:
                self.collect_garbage()
            self._collected = True
        except OSError as error:
            _log.warning("saved, but old steps are left: %s", error)

    def _remove(self, step: int, *, finished: bool) -> bool:
        """Remove a step if it is ours and as expected; return whether that was so."""
        store = self.store(step)
        try:
            with store.exclusive():
                if not _is_marked(store, step):
                    return False
                if finished:
                    return _remove_finished(store)
                store.discard_leftovers(older_than_seconds=self._grace_seconds)
                if self._is_finished(store) or not self._is_old(store):
                    return False
                _remove_files(store, set())
                return True
        except ConcurrentSaveError:
            return False

    def _is_old(self, store: Store) -> bool:
        written = [store.modified(name) for name in store.names()]
        latest = time.time() - self._grace_seconds
        return all(seconds is not None and seconds <= latest for seconds in written)


def _checked_steps(pinned: object) -> frozenset[int]:
    steps: set[int] = set()
    for step in pinned if isinstance(pinned, Iterable) else [pinned]:
        if type(step) is int and step >= 0:
            steps.add(step)
        else:
            raise ConfigurationError(
                f"pinned={pinned!r} must be steps, integers of 0 or more.",
                hint="For example pinned=[1000, 2000].",
            )
    return frozenset(steps)


def _mark(store: Store, step: int) -> None:
    """Say that a manager begins this step, unless the folder holds a checkpoint already."""
    if store.size(MANIFEST_NAME) is None:
        with store.write(STEP_NAME) as out:
            out.write(_mark_bytes(step))
            out.commit()


def _mark_bytes(step: int) -> bytes:
    return (json.dumps({"format": "luma-step", "step": step, "version": 1}) + "\n").encode()


def _is_marked(store: Store, step: int) -> bool:
    try:
        return store.read_range(STEP_NAME, 0, _MAX_MARK_BYTES) == _mark_bytes(step)
    except FileNotFoundError:
        return False


def _remove_finished(store: Store) -> bool:
    try:
        manifest = read_manifest(store)
    except (CheckpointError, UnknownCodecError):
        # Whoever reads this step shall be told what is wrong with it, so it stays.
        return False
    store.delete(MANIFEST_NAME)
    _remove_files(store, {file.name for file in manifest.files})
    return True


def _remove_files(store: Store, listed: set[str]) -> None:
    """Remove a step's files, its mark last: what an interrupted removal leaves is known as ours."""
    for name in store.names():
        ours = shard_generation(name) is not None and written_by_us(store, name)
        if ours or name in listed or name == INDEX_NAME:
            store.delete(name)
    store.delete(STEP_NAME)
    store.remove_folder()
