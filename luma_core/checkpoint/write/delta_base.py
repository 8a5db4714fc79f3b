"""The checkpoint that a save builds on: which may be one, and what is read of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from luma_core.checkpoint.format.compression import Compression
from luma_core.checkpoint.format.delta import ReadBase
from luma_core.checkpoint.format.dtypes import dtype_name
from luma_core.checkpoint.format.manifest import (
    DELTA_VERSION,
    MAX_CHAIN,
    BaseEntry,
    Manifest,
)
from luma_core.checkpoint.format.shard import PlannedTensor
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, Store, storage_errors
from luma_core.errors import BrokenChainError, ConfigurationError


@dataclass(frozen=True)
class BaseChoice:
    """Which checkpoint a save builds on.

    Attributes:
        find: returns its store, or None for a full save; called when it is the save's turn.
        required: whether a base that cannot be used is an error; else the save is full.
    """

    find: Callable[[], Store | None]
    required: bool


def chosen_base(base: Place, store: Store, compression: Compression) -> BaseChoice:
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
    return BaseChoice(lambda: store.beside(name), required=True)


class Base:
    """A checkpoint that a save builds on.

    Args:
        store: where it lies.
        budget: of the save.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest, or that of one it builds on, cannot be trusted.
        ConfigurationError: its chain has the greatest length already.
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self._version = store.version(MANIFEST_NAME)
        self._checkpoint = Checkpoint(store, budget=budget)
        self._checkpoint.chain()
        self._state = {
            entry.name: entry for entry in self._checkpoint.manifest.tensors_of("optimizer")
        }
        if self._checkpoint.manifest.chain >= MAX_CHAIN:
            raise ConfigurationError(
                f"base={store.url!r} is the last of a chain of {MAX_CHAIN} checkpoints.",
                hint="Save a full one, without base=, or give one that `luma flatten` wrote.",
            )

    def reader(self, tensor: PlannedTensor) -> ReadBase | None:
        """Return what reads the counterpart of a tensor of the state; None where there is none."""
        entry = self._state.get(tensor.name)
        like = (dtype_name(tensor.dtype), tensor.shape)
        if entry is None or entry.box is not None or (entry.dtype, entry.shape) != like:
            return None
        return partial(self._checkpoint.read_stored, entry.name)

    def named_in(self, manifest: Manifest) -> Manifest:
        """Return ``manifest`` with what it must say of the base: nothing where it is full.

        Raises:
            BrokenChainError: the base was removed or replaced since this save began.
        """
        if not any(entry.deltas for entry in manifest.tensors):
            return manifest
        with storage_errors(self._store.url):
            if self._store.version(MANIFEST_NAME) != self._version:
                raise BrokenChainError(
                    f"{self._store.url}: the base was removed or replaced while it was in use.",
                    hint="Save again, with another base or none.",
                )
        base = self._checkpoint.manifest
        entry = BaseEntry(self._store.place[1], base.digest, base.chain)
        return replace(manifest, version=DELTA_VERSION, base=entry)
