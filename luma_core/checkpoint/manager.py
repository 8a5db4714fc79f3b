"""The checkpoints of one run: numbered steps, which are kept, and what is cleared away."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Unpack, overload

from torch import nn

from luma_core.checkpoint.format.folder import GRACE_SECONDS, read_manifest
from luma_core.checkpoint.format.manifest import MAX_CHAIN, Manifest
from luma_core.checkpoint.format.plan import SavableState
from luma_core.checkpoint.read.delta_chain import base_folder
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.load import LoadableState, LoadedCheckpoint, load
from luma_core.checkpoint.read.reader import Checkpoint, open
from luma_core.checkpoint.retention import Retention
from luma_core.checkpoint.staging import async_executor as background
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.steps import damage, is_marked, mark, remove_files, remove_finished
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import ABSENT, Place, Store, Version, storage_errors
from luma_core.checkpoint.write.delta_base import BaseChoice
from luma_core.checkpoint.write.saver import SaveOptions, prepared
from luma_core.codecs.base import is_number_in
from luma_core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConcurrentSaveError,
    ConfigurationError,
    CorruptCheckpointError,
    StorageError,
    UnknownCodecError,
    some_names,
)

_log = logging.getLogger("luma")

_STEP = re.compile(r"\d{8,}")


class CheckpointManager:
    """Checkpoints of one run under ``{root}/{step:08d}``.

    A step exists once its manifest is committed, so `latest` never names an unfinished one. Steps
    are removed only where a mark in their folder says that a manager saved them; the manifest goes
    first, and only files that it lists, or that bear our mark, go with it. A checkpoint that any
    other in ``root`` holds differences to is never removed.

    Args:
        root: the run's folder, as `save` takes it; steps are folders inside.
        keep_last: how many of the latest steps are kept. All steps are kept where neither this nor
            ``keep_every`` is given.
        keep_every: steps divisible by it are kept.
        pinned: steps that are kept, integers of 0 or more.
        grace_seconds: unfinished steps to which nothing was written for that long are removed.
        max_chain: how many steps it may take to read one, up to 32. With 1, every step is full.
            With more, a step holds differences to the one before where they take fewer bytes
            (``base`` of `save`), and after so many steps comes a full one. The full step of the
            chain before is kept then, as one damaged byte in a full step ends its whole chain.

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
        max_chain: int = 1,
    ) -> None:
        self._retention = Retention(keep_last, keep_every, pinned)
        if not is_number_in(grace_seconds, 0):
            raise ConfigurationError(
                f"grace_seconds={grace_seconds!r} must be a number of 0 or more."
            )
        if type(max_chain) is not int or not 1 <= max_chain <= MAX_CHAIN:
            raise ConfigurationError(
                f"max_chain={max_chain!r} must be an integer from 1 to {MAX_CHAIN}."
            )
        self._root = open_store(root)
        self._max_chain = max_chain
        self._grace_seconds = grace_seconds
        self._collected = False
        self._begun: list[int] = []
        self._bases: dict[str, tuple[Version, str | None]] = {}
        self.url = self._root.url

    def store(self, step: int) -> Store:
        """Return the folder of a step, which need not exist.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
        """
        if type(step) is not int or step < 0:
            raise ConfigurationError(f"step={step!r} must be an integer of 0 or more.")
        return self._root.folder(_folder_name(step))

    def steps(self) -> list[int]:
        """Return all finished steps, in order.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(self.url):
            return [step for step in self._folders() if self._is_finished(self.store(step))]

    def latest(self, *, verified: bool = False) -> int | None:
        """Return the last finished step, or ``None`` where there is none.

        Args:
            verified: whether to skip damaged steps, each with a warning in the log, and return the
                last one that `luma_core.checkpoint.verify` finds whole. Reads all of it, of what it
                holds differences to, and of those that are skipped. Damaged steps stay where they
                are: before a save that comes before one of them, `rewind` to what is returned.

        Raises:
            StorageError: the store failed.
        """
        return self._latest(verified=verified, other_than=None)

    def _latest(self, *, verified: bool, other_than: int | None) -> int | None:
        with storage_errors(self.url):
            for step in reversed(self._folders()):
                store = self.store(step)
                if step == other_than or not self._is_finished(store):
                    continue
                if not verified or (problem := damage(store)) is None:
                    return step
                _log.warning(
                    "%s: step %d is skipped, for it is damaged: %s", self.url, step, problem
                )
        return None

    def open(self, step: int | None = None) -> Checkpoint:
        """Open a step, the latest by default; raises what `luma_core.checkpoint.open` does."""
        return open(self.store(self._existing(step)))

    def load(
        self,
        step: int | None = None,
        *,
        optimizer: LoadableState | None = None,
        model: nn.Module | None = None,
        strict: bool = True,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        progress: Progress | None = None,
    ) -> LoadedCheckpoint:
        """Load a step, the latest by default; else like `luma_core.checkpoint.load`.

        Saves in flight of this process end first.

        Raises:
            CheckpointNotFoundError: there is no finished step, or not that one.
            CorruptCheckpointError: it is damaged; the hint names the last step that is whole.
        """
        background.finish()
        number = self._existing(step)
        try:
            return load(
                self.store(number),
                optimizer=optimizer,
                model=model,
                strict=strict,
                max_memory_bytes=max_memory_bytes,
                progress=progress,
            )
        except CorruptCheckpointError as error:
            error.hint = f"{error.hint} {self._offer(number)}".strip()
            raise

    def _offer(self, damaged: int) -> str:
        """Say what to load instead of a damaged step."""
        try:
            good = self._latest(verified=True, other_than=damaged)
        except StorageError as error:
            return f"Which other step is whole could not be found out: {error.message}"
        if good is None:
            return "No other step here is whole."
        then = f", then manager.rewind({good}) before the next save" if good < damaged else ""
        return f"Step {good} is the last one that is whole: manager.load({good}, ...){then}."

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
            ConfigurationError: a later step exists; with ``wait=False`` the handle may be what
                says so, because the store is looked at behind training. After going back to an
                earlier step, `rewind` to it first: `latest` would go on naming the branch that was
                left.
        """
        store = self.store(step)
        if (later := max(self._begun, default=-1)) > step:
            raise _too_early(step, f"{later}, which is being saved")
        chains = self._max_chain > 1
        choice = BaseChoice(partial(self._find_base, step), required=False) if chains else None
        run = prepared(store, optimizer=optimizer, wait=wait, choice=choice, **options)
        self._begun.append(step)
        save_and_clear = partial(self._save_and_clear, store, step, run)
        return save_and_clear() if wait else background.submit(save_and_clear, store.url, step)

    def _save_and_clear(self, store: Store, step: int, run: Callable[[], Manifest]) -> Manifest:
        try:
            self._begin(store, step)
            manifest = run()
        finally:
            self._begun.remove(step)
        self._clear()
        return manifest

    def _begin(self, store: Store, step: int) -> None:
        with storage_errors(store.url):
            latest = self.latest()
            if latest is not None and latest > step:
                raise _too_early(step, f"{latest}, which {self.url} holds already")
            mark(store, step)

    def _find_base(self, step: int) -> Store | None:
        """Return the step before, unless it is not ours, unreadable or the last of its chain."""
        earlier = (found for found in reversed(self._folders()) if found < step)
        last = next((found for found in earlier if self._is_finished(self.store(found))), None)
        if last is None or not is_marked(self.store(last), last):
            return None
        try:
            chain = read_manifest(self.store(last)).chain
        except StorageError:
            raise
        except (CheckpointError, UnknownCodecError) as error:
            _log.warning("saving in full, for the last step is no base: %s", error)
            return None
        return self.store(last) if chain < self._max_chain else None

    def rewind(self, step: int) -> list[int]:
        """Remove all finished steps after ``step``, pinned and damaged ones too; return them.

        What other checkpoints in the root hold differences to stays. Saves in flight of this
        process end first.

        Args:
            step: a finished step; 0 removes all steps after 0, whether there is such a step or not.

        Raises:
            ConfigurationError: ``step`` is not 0 and not a finished step; nothing was removed.
            StorageError: the store failed.
        """
        self.store(step)
        background.finish()
        with storage_errors(self.url):
            steps = self.steps()
            if step and step not in steps:
                raise ConfigurationError(
                    f"step={step} is not in {self.url}, so there would be nothing to go on from; "
                    f"its steps are {some_names([str(found) for found in steps])}.",
                    hint="Give one of these steps, or 0 to remove all of them.",
                )
            return self._remove_all([found for found in steps if found > step], damaged=True)

    def prune(self) -> list[int]:
        """Remove the finished steps that need not be kept; return them.

        Those that other checkpoints in the root hold differences to need to be, and with
        ``max_chain`` the full step of the chain before the last.

        Raises:
            StorageError: the store failed.
        """
        if self._retention.keeps_all:
            return []
        with storage_errors(self.url):
            steps = self.steps()
            kept = self._retention.kept(steps, self._bases_of(steps))
            return self._remove_all([step for step in steps if step not in kept])

    def collect_garbage(self) -> list[int]:
        """Remove steps that were begun, not finished and not written to for a while; return them.

        Also removes temporary files and uploads of that age from all steps.

        Raises:
            StorageError: the store failed.
        """
        with storage_errors(self.url):
            return [step for step in self._folders() if self._remove(step, finished=False)]

    def _existing(self, step: int | None) -> int:
        found = self.latest() if step is None else step
        if found is None:
            raise CheckpointNotFoundError(f"{self.url}: no finished step here.")
        return found

    def _folders(self) -> list[int]:
        names = (name for name in self._root.folders() if _STEP.fullmatch(name))
        return sorted(int(name) for name in names if _folder_name(int(name)) == name)

    def _is_finished(self, store: Store) -> bool:
        return store.size(MANIFEST_NAME) is not None

    def _clear(self) -> None:
        try:
            self.prune()
            if not self._collected:
                self.collect_garbage()
            self._collected = True
        except OSError as error:
            _log.warning("saved, but old steps are left: %s", error)

    def _remove_all(self, steps: list[int], *, damaged: bool = False) -> list[int]:
        """Remove finished steps on which no other checkpoint builds; return them.

        The later ones go first, so that none is ever left without its base.
        """
        if not steps:
            return []
        bases = self._present_bases()
        removed = []
        for step in sorted(steps, reverse=True):
            name = _folder_name(step)
            if name in bases.values():
                continue
            if self._remove(step, finished=True, damaged=damaged):
                bases.pop(name, None)
                removed.append(step)
        return sorted(removed)

    def _bases_of(self, steps: list[int]) -> dict[int, int] | None:
        """Return which step each one builds on; ``None`` where this manager makes no chains."""
        if self._max_chain == 1:
            return None
        numbers = {_folder_name(step): step for step in steps}
        bases = self._present_bases()
        return {
            step: numbers[base]
            for name, step in numbers.items()
            if (base := bases.get(name)) in numbers
        }

    def _present_bases(self) -> dict[str, str | None]:
        """Return what each checkpoint in the root builds on, by name; a manifest is read once."""
        known, self._bases = self._bases, {}
        for name in self._root.folders():
            store = self._root.folder(name)
            version = store.version(MANIFEST_NAME)
            if version != ABSENT:
                same = name in known and known[name][0] == version
                self._bases[name] = known[name] if same else (version, base_folder(store))
        return {name: base for name, (_, base) in self._bases.items()}

    def _remove(self, step: int, *, finished: bool, damaged: bool = False) -> bool:
        """Remove a step if it is ours and as expected; return whether that was so."""
        store = self.store(step)
        try:
            with store.exclusive():
                if not is_marked(store, step):
                    return False
                if finished:
                    return remove_finished(store, damaged=damaged)
                store.discard_leftovers(older_than_seconds=self._grace_seconds)
                if self._is_finished(store) or not self._is_old(store):
                    return False
                remove_files(store, set())
                return True
        except ConcurrentSaveError:
            return False

    def _is_old(self, store: Store) -> bool:
        written = [store.modified(name) for name in store.names()]
        latest = time.time() - self._grace_seconds
        return all(seconds is not None and seconds <= latest for seconds in written)


def _folder_name(step: int) -> str:
    return f"{step:08d}"


def _too_early(step: int, latest: str) -> ConfigurationError:
    return ConfigurationError(
        f"step={step} is before step {latest}.",
        hint="Load one of the steps that are there and remove those after it by manager.rewind, or "
        "save to another folder.",
    )
