"""The name under which a `CheckpointManager` takes the processes of a group."""

from __future__ import annotations

from collections.abc import Iterable

from torch.distributed import ProcessGroup

from luma_core.checkpoint.format.folder import GRACE_SECONDS
from luma_core.checkpoint.manager import CheckpointManager
from luma_core.checkpoint.storage.store import Place
from luma_core.checkpoint.write.coordination import group_or_default


class ShardedCheckpointManager(CheckpointManager):
    """`CheckpointManager` with ``process_group=group``, or that of all processes.

    Args:
        root: the run's folder, which all processes reach.
        keep_last: as `CheckpointManager` takes it.
        keep_every: as `CheckpointManager` takes it.
        pinned: as `CheckpointManager` takes it.
        grace_seconds: as `CheckpointManager` takes it.
        max_chain: as `CheckpointManager` takes it.
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
        max_chain: int = 1,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            root,
            keep_last=keep_last,
            keep_every=keep_every,
            pinned=pinned,
            grace_seconds=grace_seconds,
            max_chain=max_chain,
            process_group=group_or_default(group),
        )
