"""The checkpoints of one run: saves numbered steps, loads them, and removes old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, Unpack, overload

from torch import nn
from torch.distributed import ProcessGroup

from luma_core.checkpoint.format.any_optimizer import AnyOptimizers
from luma_core.checkpoint.format.folder import GRACE_SECONDS
from luma_core.checkpoint.format.manifest import MAX_CHAIN, Manifest
from luma_core.checkpoint.format.plan import SavableState
from luma_core.checkpoint.loading import load
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.load import LoadableState, LoadedCheckpoint
from luma_core.checkpoint.read.opening import open
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.retention import Retention
from luma_core.checkpoint.run_folder import RunFolder, too_early
from luma_core.checkpoint.staging import async_executor
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store
from luma_core.checkpoint.write.coordination import Ranks
from luma_core.checkpoint.write.delta_base import BaseChoice
from luma_core.checkpoint.write.options import SaveKeywords, SaveOptions
from luma_core.checkpoint.write.saver import prepare_run
from luma_core.codecs.base import is_number_in
from luma_core.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    StorageError,
)
from luma_core.keywords import merge_keywords

_OFFER = "manager.latest(verified=True) finds the last step that is whole."


class CheckpointManager:
    """Checkpoints of one run under ``{root}/{step:08d}``.

    A step exists once its manifest is committed, so `latest` never names an unfinished one. Steps
    are removed only where a mark in their folder says that a manager saved them; the manifest goes
    first, and only files that it lists, or that bear our mark, go with it. A checkpoint that any
    other in ``root`` holds differences to is never removed.

    With a process group, all its ranks call each method together. The coordinator, rank 0, looks at
    the folder, decides, and removes steps; all get what it found.

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
        process_group: the ranks that save and load together: ``torch.distributed.group.WORLD`` for
            all; None for this process alone.

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
        process_group: ProcessGroup | None = None,
    ) -> None:
        retention = Retention(keep_last, keep_every, pinned)
        if not is_number_in(grace_seconds, 0):
            raise ConfigurationError(
                f"grace_seconds={grace_seconds!r} must be a number of 0 or more."
            )
        if type(max_chain) is not int or not 1 <= max_chain <= MAX_CHAIN:
            raise ConfigurationError(
                f"max_chain={max_chain!r} must be an integer from 1 to {MAX_CHAIN}."
            )
        self._folder = RunFolder(
            open_store(root), retention, grace_seconds=grace_seconds, max_chain=max_chain
        )
        self._max_chain = max_chain
        self._group = process_group
        self._ranks = Ranks(process_group)
        self._begun: list[int] = []
        self.url = self._folder.url

    def store(self, step: int) -> Store:
        """Return the folder of a step, which need not exist.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
        """
        return self._folder.store(step)

    def steps(self) -> list[int]:
        """Return all finished steps, in order.

        Raises:
            StorageError: the store failed.
        """
        return self._ranks.run_on_coordinator(self._folder.steps)

    def latest(self, *, verified: bool = False) -> int | None:
        """Return the last finished step, or ``None`` where there is none.

        Args:
            verified: whether to skip damaged steps, each with a warning in the log, and return the
                last one that `luma_core.checkpoint.verify` finds whole. Reads all of it, of what it
                holds differences to, and of those that are skipped. Damaged steps stay where they
                are: before a save that comes before one of them, `rewind` to what is returned. The
                group's time-out bounds how long other ranks wait for the coordinator.

        Raises:
            StorageError: the store failed.
        """
        return self._ranks.run_on_coordinator(partial(self._folder.latest, verified=verified))

    def open(self, step: int | None = None) -> Checkpoint:
        """Open a step, the latest by default; raises what `luma_core.checkpoint.open` does."""
        return open(self.store(self._existing(step)))

    def load(
        self,
        step: int | None = None,
        *,
        optimizer: LoadableState | AnyOptimizers | None = None,
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
        async_executor.finish()
        number = self._existing(step)
        try:
            return load(
                self.store(number),
                optimizer=optimizer,
                model=model,
                strict=strict,
                max_memory_bytes=max_memory_bytes,
                progress=progress,
                process_group=self._group,
            )
        except CorruptCheckpointError as error:
            # Not all ranks may have come here, so none can look for it together with others.
            offer = self._offer(number) if self._group is None else _OFFER
            error.hint = f"{error.hint} {offer}".strip()
            raise

    def _offer(self, damaged: int) -> str:
        """Say what to load instead of a damaged step."""
        try:
            good = self._folder.latest(verified=True, other_than=damaged)
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
        optimizer: SavableState | AnyOptimizers,
        model: nn.Module | None = None,
        extra: Any = None,
        wait: Literal[True] = True,
        options: SaveOptions | None = None,
        **keywords: Unpack[SaveKeywords],
    ) -> Manifest: ...

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: SavableState | AnyOptimizers,
        model: nn.Module | None = None,
        extra: Any = None,
        wait: Literal[False],
        options: SaveOptions | None = None,
        **keywords: Unpack[SaveKeywords],
    ) -> SaveHandle: ...

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: SavableState | AnyOptimizers,
        model: nn.Module | None = None,
        extra: Any = None,
        wait: bool,
        options: SaveOptions | None = None,
        **keywords: Unpack[SaveKeywords],
    ) -> Manifest | SaveHandle: ...

    def save(
        self,
        step: int,
        *,
        optimizer: SavableState | AnyOptimizers,
        model: nn.Module | None = None,
        extra: Any = None,
        wait: bool = True,
        options: SaveOptions | None = None,
        **keywords: Unpack[SaveKeywords],
    ) -> Manifest | SaveHandle:
        """Save a step like `luma_core.checkpoint.save`, then remove what need not be kept.

        The first save of a manager also collects garbage. A failure to remove is no error but a
        warning in the log.

        Args:
            step: its number, which no other step may be after.
            optimizer: as `luma_core.checkpoint.save` takes it, like the arguments that follow.
            model: whose weights are saved as well.
            extra: values of your own.
            wait: whether to return only when the step is committed.
            options: how to save.
            **keywords: single options, in place of those in ``options``.

        Raises:
            ConfigurationError: a later step exists; with ``wait=False`` the handle may be what
                says so, because the store is looked at asynchronously. After going back to an
                earlier step, `rewind` to it first: `latest` would go on naming the branch that was
                left.
            LumaError: whatever else `luma_core.checkpoint.save` raises.
        """
        chosen = merge_keywords("save", SaveOptions, options, keywords)
        store = self.store(step)
        self._ranks.run_on_coordinator(partial(self._refuse_earlier, step))
        find = partial(self._folder.find_base, step)
        run = prepare_run(
            store,
            optimizer=optimizer,
            model=model,
            extra=extra,
            wait=wait,
            process_group=self._group,
            options=chosen,
            begin=partial(self._folder.begin, step),
            choice=BaseChoice(find, required=False) if self._max_chain > 1 else None,
        )
        self._begun.append(step)
        save_and_clear = partial(self._save_and_clear, step, run)
        return save_and_clear() if wait else async_executor.submit(save_and_clear, store.url, step)

    def async_save(
        self,
        step: int,
        *,
        optimizer: SavableState | AnyOptimizers,
        model: nn.Module | None = None,
        extra: Any = None,
        options: SaveOptions | None = None,
        **keywords: Unpack[SaveKeywords],
    ) -> SaveHandle:
        """Save a step asynchronously, like ``save(..., wait=False)``, and return its handle.

        Args:
            step: as `save` takes it.
            optimizer: as `save` takes it.
            model: as `save` takes it.
            extra: as `save` takes it.
            options: how to save.
            **keywords: single options, in place of those in ``options``.

        Raises:
            LumaError: what `save` raises before it writes.
        """
        chosen = merge_keywords("async_save", SaveOptions, options, keywords)
        return self.save(
            step, optimizer=optimizer, model=model, extra=extra, wait=False, options=chosen
        )

    def _refuse_earlier(self, step: int) -> None:
        later = max(self._begun, default=-1)
        if later > step:
            raise too_early(step, f"{later}, which is being saved")

    def _save_and_clear(self, step: int, run: Callable[[], Manifest]) -> Manifest:
        try:
            manifest = run()
        finally:
            self._begun.remove(step)
        if self._ranks.is_coordinator:
            self._folder.clear()
        return manifest

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
        async_executor.finish()
        return self._ranks.run_on_coordinator(partial(self._folder.rewind, step))

    def prune(self) -> list[int]:
        """Remove the finished steps that need not be kept; return them.

        Those that other checkpoints in the root hold differences to need to be, and with
        ``max_chain`` the full step of the chain before the last.

        Raises:
            StorageError: the store failed.
        """
        return self._ranks.run_on_coordinator(self._folder.prune)

    def collect_garbage(self) -> list[int]:
        """Remove steps that were begun, not finished and not written to for a while; return them.

        Also removes temporary files and uploads of that age from all steps.

        Raises:
            StorageError: the store failed.
        """
        return self._ranks.run_on_coordinator(self._folder.collect_garbage)

    def _existing(self, step: int | None) -> int:
        found = self.latest() if step is None else step
        if found is None:
            raise CheckpointNotFoundError(f"{self.url}: no finished step here.")
        return found
