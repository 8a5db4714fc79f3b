"""The folder of one numbered step: the mark that says whose it is, and its removal."""

from __future__ import annotations

import errno
import json

from luma_core.checkpoint.format.folder import read_manifest
from luma_core.checkpoint.format.shard import written_by_us
from luma_core.checkpoint.read.verify import verify
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, shard_generation
from luma_core.checkpoint.storage.store import Store
from luma_core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    StorageError,
    UnknownCodecError,
)

STEP_NAME = "luma-step.json"
"""Written into a step's folder before anything else: the proof that a manager began it."""

_MAX_MARK_BYTES = 1000


def mark(store: Store, step: int) -> None:
    """Say that a manager begins this step, unless the folder holds a checkpoint already."""
    if store.size(MANIFEST_NAME) is None:
        with store.write(STEP_NAME) as out:
            out.write(_mark_bytes(step))
            out.commit()


def _mark_bytes(step: int) -> bytes:
    return (json.dumps({"format": "luma-step", "step": step, "version": 1}) + "\n").encode()


def is_marked(store: Store, step: int) -> bool:
    """Return whether a manager began this step in this folder."""
    try:
        return store.read_range(STEP_NAME, 0, _MAX_MARK_BYTES) == _mark_bytes(step)
    except FileNotFoundError:
        return False


def damage(store: Store) -> str | None:
    """Return what makes a step unusable, or ``None`` where every byte is as it was written.

    Raises:
        StorageError: the store failed, other than by bytes that cannot be read.
    """
    try:
        problems = verify(store).problems
    except CheckpointNotFoundError as error:
        return error.message
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
        return error.message
    return f"{problems[0].file}: {problems[0].message}" if problems else None


def remove_finished(store: Store, *, damaged: bool) -> bool:
    """Remove a step with a manifest; return whether that was done.

    Args:
        store: its folder.
        damaged: whether also where the manifest cannot be read; files that only it knows stay then.
    """
    try:
        listed = {file.name for file in read_manifest(store).files}
    except StorageError:
        return False
    except (CheckpointError, UnknownCodecError):
        # Unless it is in the way, whoever reads this step shall be told what is wrong with it.
        if not damaged:
            return False
        listed = set()
    store.delete(MANIFEST_NAME)
    remove_files(store, listed)
    return True


def remove_files(store: Store, listed: set[str]) -> None:
    """Remove a step's files, its mark last, so that an interrupted removal can be finished."""
    for name in store.names():
        ours = shard_generation(name) is not None and written_by_us(store, name)
        if ours or name in listed or name == INDEX_NAME:
            store.delete(name)
    store.delete(STEP_NAME)
    store.remove_folder()
