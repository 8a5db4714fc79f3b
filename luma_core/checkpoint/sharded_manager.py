"""The checkpoints of a run whose state is sharded over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Unpack, overload

from torch import distributed as dist
from torch import nn

from luma_core.checkpoint.format.folder import GRACE_SECONDS
from luma_core.checkpoint.format.manifest import Manifest
from luma_core.checkpoint.manager import CheckpointManager
from luma_core.checkpoint.read.load import LoadedCheckpoint
from luma_core.checkpoint.staging import async_executor as background
from luma_core.checkpoint.staging.async_executor import SaveHandle
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.store import Place
from luma_core.checkpoint.write.coordination import Processes
from luma_core.checkpoint.write.sharded import SharedOptions, load_sharded, prepared_sharded
from luma_core.errors import CheckpointNotFoundError, CorruptCheckpointError
from luma_core.optim.base import CompressedOptimizer


class ShardedCheckpointManager:
    """`CheckpointManager` for optimizers of sharded parameters: all processes call it together.

    Process 0 looks at the folder, decides, and removes steps. Every step is a full checkpoint.

    Args:
        root: the run's folder, which all processes reach.
        keep_last: as `CheckpointManager` takes it.
        keep_every: as `CheckpointManager` takes it.
        pinned: as `CheckpointManager` takes it.
        grace_seconds: as `CheckpointManager` takes it.
        group: the processes; all by default.

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
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._manager = CheckpointManager(
            root,
            keep_last=keep_last,
            keep_every=keep_every,
            pinned=pinned,
            grace_seconds=grace_seconds,
        )
        self._group = group
        self._processes = Processes(group)
        self.url = self._manager.url

    def steps(self) -> list[int]:
        """Return all finished steps, in order, as process 0 sees them.

        Raises:
            StorageError: the store failed, or a process disappeared.
        """
        return self._processes.agreed(self._manager.steps)[0]

    def latest(self, *, verified: bool = False) -> int | None:
        """Return the last finished step as process 0 sees it, or ``None`` where there is none.

        Args:
            verified: whether to skip damaged steps, as `CheckpointManager.latest` does. Process 0
                reads; the group's time-out bounds how long the others wait for it.

        Raises:
            StorageError: the store failed, or a process disappeared.
        """
        first = self._processes.rank == 0
        return self._processes.agreed(
            lambda: self._manager.latest(verified=verified) if first else None
        )[0]

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: CompressedOptimizer,
        wait: Literal[True] = True,
        **options: Unpack[SharedOptions],
    ) -> Manifest: ...

    @overload
    def save(
        self,
        step: int,
        *,
        optimizer: CompressedOptimizer,
        wait: bool,
        **options: Unpack[SharedOptions],
    ) -> Manifest | SaveHandle: ...

    def save(
        self,
        step: int,
        *,
        optimizer: CompressedOptimizer,
        wait: bool = True,
        **options: Unpack[SharedOptions],
    ) -> Manifest | SaveHandle:
        """Save a step like `luma_core.checkpoint.save_sharded`, then remove what need not be kept.

        Raises:
            ConfigurationError: a later step exists; with ``wait=False`` the handle says so.
        """
        store = self._manager.store(step)
        options.setdefault("group", self._group)
        begin = partial(self._manager._begin, store, step)
        run = prepared_sharded(store, optimizer=optimizer, wait=wait, begin=begin, **options)
        save_and_clear = partial(self._save_and_clear, run)
        return save_and_clear() if wait else background.submit(save_and_clear, store.url, step)

    def _save_and_clear(self, run: Callable[[], Manifest]) -> Manifest:
        manifest = run()
        if self._processes.rank == 0:
            self._manager._clear()
        return manifest

    def load(
        self,
        step: int | None = None,
        *,
        optimizer: CompressedOptimizer,
        model: nn.Module | None = None,
        strict: bool = True,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> LoadedCheckpoint:
        """Load a step, the latest by default; else like `luma_core.checkpoint.load_sharded`.

        Raises:
            CheckpointNotFoundError: there is no finished step, or not that one.
            CorruptCheckpointError: it is damaged.
        """
        background.finish()
        found = self.latest() if step is None else step
        if found is None:
            raise CheckpointNotFoundError(f"{self.url}: no finished step here.")
        try:
            return load_sharded(
                self._manager.store(found),
                optimizer=optimizer,
                model=model,
                strict=strict,
                max_memory_bytes=max_memory_bytes,
                group=self._group,
            )
        except CorruptCheckpointError as error:
            # Not all processes may have come here, so none can look for it together with others.
            offer = "manager.latest(verified=True) finds the last step that is whole."
            error.hint = f"{error.hint} {offer}".strip()
            raise

    def rewind(self, step: int) -> list[int]:
        """Remove all finished steps after ``step``, as `CheckpointManager.rewind`; return them.

        Raises:
            ConfigurationError: ``step`` is not an integer of 0 or more.
            StorageError: the store failed, or a process disappeared.
        """
        background.finish()
        first = self._processes.rank == 0
        return self._processes.agreed(lambda: self._manager.rewind(step) if first else [])[0]
