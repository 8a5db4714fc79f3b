"""The options of a save, spelled once for every way to save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from luma_core.checkpoint.format.compression import COMPRESSIONS, Compression
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.store import Place
from luma_core.errors import ConfigurationError

MAX_SHARD_BYTES = 512 << 20
"""Default bound on the uncompressed size of a shard."""

Replicas = Literal["equal", "first"]
"""Whether copies of one tensor must be equal, or those of the first process that has one count."""


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """How a checkpoint is saved: what `save` takes beside what it saves and where to.

    Attributes:
        compression: ``"zstd"`` or ``"none"``, for optimizer state and extra tensors.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard; a larger tensor has a shard of its own.
        max_memory_bytes: bound on what each process holds beside the state, one parameter of an
            opened checkpoint, its share of the weights of a sharded model, and the copies of an
            asynchronous save; decides how many shards are in flight.
        progress: called with uncompressed bytes done and in total, of what this process writes,
            from any thread, never from two at once.
        base: delta base: an earlier checkpoint in the same folder (``run/00000010`` for
            ``run/00000020``). Chunks of the state are stored as differences to it where that takes
            fewer bytes; the new checkpoint can then be read only together with it. It may be one
            that an earlier asynchronous save is still writing. Tensors that it has in another
            layout, as another sharding cut them, are stored in full.
        replicas: ``"equal"``, or ``"first"`` to save the values of the first process that has them
            where those of others may differ; they are not compared then.
    """

    compression: Compression = "zstd"
    overwrite: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES
    max_memory_bytes: int = MAX_MEMORY_BYTES
    progress: Progress | None = None
    base: Place | None = None
    replicas: Replicas = "equal"

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigurationError: naming the option, its value and what it must be.
        """
        if self.compression not in COMPRESSIONS:
            known = ", ".join(map(repr, COMPRESSIONS))
            raise ConfigurationError(f"compression={self.compression!r} must be one of {known}.")
        size: object = self.max_shard_bytes
        if isinstance(size, bool) or not (isinstance(size, int) and size > 0):
            raise ConfigurationError(f"max_shard_bytes={size!r} must be a positive integer.")
        if not isinstance(self.overwrite, bool):
            raise ConfigurationError(f"overwrite={self.overwrite!r} must be True or False.")
        if self.replicas not in ("equal", "first"):
            raise ConfigurationError(f"replicas={self.replicas!r} must be 'equal' or 'first'.")
        Budget.of(self.max_memory_bytes)


class SaveKeywords(TypedDict, total=False):
    """The fields of `SaveOptions` as keywords, for type checkers."""

    compression: Compression
    overwrite: bool
    max_shard_bytes: int
    max_memory_bytes: int
    progress: Progress | None
    base: Place | None
    replicas: Replicas
