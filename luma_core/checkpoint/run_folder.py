"""The folder of a run as one process sees it: steps, delta chains, and which may be removed."""

from __future__ import annotations

import logging
import re
import time

from luma_core.checkpoint.format.folder import read_manifest
from luma_core.checkpoint.read.delta_chain import base_folder
from luma_core.checkpoint.retention import Retention
from luma_core.checkpoint.steps import damage, is_marked, mark, remove_files, remove_finished
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.store import ABSENT, Store, Version, storage_errors
from luma_core.errors import (
    CheckpointError,
    ConcurrentSaveError,
    ConfigurationError,
    StorageError,
    UnknownCodecError,
    some_names,
)

_log = logging.getLogger("luma")

_STEP = re.compile(r"\d{8,}")


class RunFolder:
    """Numbered steps in a folder; what `CheckpointManager` does on its coordinator rank.

    Args:
        root: the folder.
        retention: which steps are kept.
        grace_seconds: unfinished steps to which nothing was written for that long are removed.
        max_chain: how many steps it may take to read one.
    """

    def __init__(
        self, root: Store, retention: Retention, *, grace_seconds: float, max_chain: int
    ) -> None:
        self._root = root
        self._retention = retention
        self._max_chain = max_chain
        self._grace_seconds = grace_seconds
        self._collected = False
        self._bases: dict[str, tuple[Version, str | None]] = {}
        self.url = root.url

    def store(self, step: int) -> Store:
        """Return the folder of a step, which need not exist.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
        """
        if type(step) is not int or step < 0:
            raise ConfigurationError(f"step={step!r} must be an integer of 0 or more.")
        return self._root.folder(_folder_name(step))

    def steps(self) -> list[int]:
        """Return all finished steps, in order."""
        with storage_errors(self.url):
            return [step for step in self._folders() if self._is_finished(self.store(step))]

    def latest(self, *, verified: bool = False, other_than: int | None = None) -> int | None:
        """Return the last finished step but ``other_than``, or None; see `CheckpointManager`."""
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

    def begin(self, step: int) -> None:
        """Mark a step's folder as ours, before the step is saved.

        Raises:
            ConfigurationError: a later step exists.
        """
        store = self.store(step)
        with storage_errors(store.url):
            latest = self.latest()
            if latest is not None and latest > step:
                raise too_early(step, f"{latest}, which {self.url} holds already")
            mark(store, step)

    def find_base(self, step: int) -> str | None:
        """Return the folder of the step before as the delta base.

        There is none where it is not ours, unreadable or the last of its delta chain.
        """
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
        return _folder_name(last) if chain < self._max_chain else None

    def rewind(self, step: int) -> list[int]:
        """Remove all finished steps after ``step``; see `CheckpointManager`."""
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
        """Remove the finished steps that need not be kept; see `CheckpointManager`."""
        if self._retention.keeps_all:
            return []
        with storage_errors(self.url):
            steps = self.steps()
            kept = self._retention.kept(steps, self._bases_of(steps))
            return self._remove_all([step for step in steps if step not in kept])

    def collect_garbage(self) -> list[int]:
        """Remove steps that were begun and never finished; see `CheckpointManager`."""
        with storage_errors(self.url):
            return [step for step in self._folders() if self._remove(step, finished=False)]

    def _folders(self) -> list[int]:
        names = (name for name in self._root.folders() if _STEP.fullmatch(name))
        return sorted(int(name) for name in names if _folder_name(int(name)) == name)

    def _is_finished(self, store: Store) -> bool:
        return store.size(MANIFEST_NAME) is not None

    def clear(self) -> None:
        """Remove steps that retention does not keep; log a warning where that fails."""
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
        """Return each step's delta base; ``None`` where this manager saves no deltas."""
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


def too_early(step: int, latest: str) -> ConfigurationError:
    """Return the error of a step that comes before another one."""
    return ConfigurationError(
        f"step={step} is before step {latest}.",
        hint="Load one of the steps that are there and remove those after it by manager.rewind, or "
        "save to another folder.",
    )
