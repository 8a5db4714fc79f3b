"""Opens a checkpoint by its URL."""

from __future__ import annotations

from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place, storage_errors


def open(url: Place, *, max_memory_bytes: int = MAX_MEMORY_BYTES) -> Checkpoint:
    """Open a checkpoint for reading; only its manifest is read at once.

    Args:
        url: folder of the checkpoint, as `save` takes it.
        max_memory_bytes: bound on what checking files holds.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest cannot be trusted.
        UnsupportedVersionError: a newer version wrote it.
        ConfigurationError: ``max_memory_bytes`` is too small.
        StorageError: the store failed.
    """
    return Checkpoint(open_store(url), budget=Budget.of(max_memory_bytes))


def exists(url: Place) -> bool:
    """Return whether there is a checkpoint, whole or damaged."""
    store = open_store(url)
    with storage_errors(store.url):
        return store.size(MANIFEST_NAME) is not None
