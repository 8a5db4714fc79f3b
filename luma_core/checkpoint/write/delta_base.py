"""Finds the delta base of a save: which checkpoint may serve, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from luma_core.checkpoint.format.compression import Compression
from luma_core.checkpoint.format.delta import ReadBase
from luma_core.checkpoint.format.dtypes import dtype_name
from luma_core.checkpoint.format.manifest import MAX_CHAIN, BaseEntry, TensorEntry
from luma_core.checkpoint.format.shard import PlannedTensor
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store, storage_errors
from luma_core.checkpoint.write.coordination import Ranks
from luma_core.errors import BrokenChainError, ConfigurationError


@dataclass(frozen=True)
class BaseChoice:
    """Which checkpoint a save builds on.

    Attributes:
        find: returns the name of its folder, or None for a full save; called on the coordinator
            rank when it is the save's turn.
        required: whether a base that cannot be used is an error; else the save is full.
    """

    find: Callable[[], str | None]
    required: bool


def choose_base(base: Place, store: Store, compression: Compression) -> BaseChoice:
    """Return the choice of one checkpoint for a save to ``store``.

    Raises:
        ConfigurationError: ``base`` does not lie beside it, or nothing is to be compressed.
    """
    if compression != "zstd":
        raise ConfigurationError(
            f"compression={compression!r} must be 'zstd' where there is a base.",
            hint="Differences are no smaller until they are compressed.",
        )
    other = open_store(base)
    (parent, name), (folder, own) = other.place, store.place
    if parent != folder:
        raise ConfigurationError(
            f"base={other.url!r} must lie in the same folder as {store.url!r}.",
            hint="A checkpoint finds its base by name alone, so that both can be moved together.",
        )
    if name == own:
        raise ConfigurationError(f"base={other.url!r} is the folder that the save would replace.")
    return BaseChoice(lambda: name, required=True)


class DeltaBase:
    """A checkpoint that a save builds on.

    Args:
        store: where it lies.
        budget: of the save.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest, or that of one in its delta chain, cannot be trusted.
        ConfigurationError: its delta chain has the greatest length already.
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self._version = store.version(MANIFEST_NAME)
        self._checkpoint = Checkpoint(store, budget=budget)
        self._checkpoint.chain()
        manifest = self._checkpoint.manifest
        self._state = {entry.place: entry for entry in manifest.tensors_of("optimizer")}
        self.digest = manifest.digest
        if manifest.chain >= MAX_CHAIN:
            raise ConfigurationError(
                f"base={store.url!r} is the last of a chain of {MAX_CHAIN} checkpoints.",
                hint="Save a full one, without base=, or give one that `luma flatten` wrote.",
            )

    def reader(self, tensor: PlannedTensor) -> ReadBase | None:
        """Return what reads the counterpart of a tensor of the state.

        There is none where the base has it in another layout, as another sharding cut it.
        """
        entry = self._state.get(tensor.place)
        if entry is None or (entry.dtype, entry.shape) != (dtype_name(tensor.dtype), tensor.shape):
            return None
        return partial(self._checkpoint.read_counterpart, entry.place, entry.shape)

    def entry_for(self, tensors: Iterable[TensorEntry]) -> BaseEntry | None:
        """Return what a manifest with these tensors must say of the base; None where it is full.

        Raises:
            BrokenChainError: the base was removed or replaced since this save began.
        """
        if not any(entry.deltas for entry in tensors):
            return None
        with storage_errors(self._store.url):
            if self._store.version(MANIFEST_NAME) != self._version:
                raise BrokenChainError(
                    f"{self._store.url}: the base was removed or replaced while it was in use.",
                    hint="Save again, with another base or none.",
                )
        return BaseEntry(self._store.place[1], self.digest, self._checkpoint.manifest.chain)


def open_base(store: Store, budget: Budget, ranks: Ranks) -> DeltaBase:
    """Return the delta base of a save, which all ranks open together.

    Raises:
        BrokenChainError: the ranks did not find the same checkpoint.
        LumaError: whatever `DeltaBase` raises, on all ranks.
    """
    found: list[DeltaBase] = []

    def open_here() -> str:
        found.append(DeltaBase(store, budget))
        return found[0].digest

    if len(set(ranks.run_on_all_ranks(open_here))) > 1:
        raise BrokenChainError(
            f"{store.url}: the processes found different checkpoints there, to be the base.",
            hint="Give a folder that all processes share, and replace no step while it is in use.",
        )
    return found[0]
