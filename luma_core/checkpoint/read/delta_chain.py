"""The delta chain: a checkpoint that holds differences names its delta base, which is checked."""

from __future__ import annotations

import json

from luma_core.checkpoint.format.folder import read_manifest
from luma_core.checkpoint.format.manifest import MAX_MANIFEST_BYTES, BaseEntry, Manifest
from luma_core.checkpoint.storage.names import MANIFEST_NAME, is_safe_name
from luma_core.checkpoint.storage.store import Store
from luma_core.errors import (
    BrokenChainError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LumaError,
    StorageError,
)


def base_manifest(store: Store, base: BaseEntry, url: str) -> Manifest:
    """Return the manifest of a checkpoint's delta base, known to be the one that it was made from.

    Args:
        store: where the delta base lies.
        base: what the checkpoint's manifest says of it.
        url: of the checkpoint, for messages.

    Raises:
        BrokenChainError: it is missing or another one.
        StorageError: the store failed.
    """
    told = f"{url}: it holds differences to the checkpoint {base.folder!r} beside it, which"
    try:
        manifest = read_manifest(store)
    except CheckpointNotFoundError as error:
        raise BrokenChainError(
            f"{told} is missing.",
            hint=f"Put the folder {base.folder!r} back beside it, or load another checkpoint.",
        ) from error
    except StorageError:
        raise
    except LumaError as error:
        raise BrokenChainError(
            f"{told} cannot be read: {error.message}",
            hint=f"Restore {store.url}/{MANIFEST_NAME} from a copy, or load another checkpoint.",
        ) from error
    if manifest.digest != base.digest or manifest.chain != base.chain:
        raise BrokenChainError(
            f"{told} has changed: its digest is {manifest.digest}, expected {base.digest}.",
            hint=f"Restore the folder {base.folder!r} from a copy, or load another checkpoint.",
        )
    return manifest


def base_folder(store: Store) -> str | None:
    """Return the name of the folder that a checkpoint holds differences to; None without one.

    What else its manifest says is not looked at, so that this also works for a checkpoint that
    newer software wrote, or whose manifest has a wrong checksum.
    """
    size = store.size(MANIFEST_NAME)
    if size is None or size > MAX_MANIFEST_BYTES:
        return None
    try:
        document = json.loads(store.read_range(MANIFEST_NAME, 0, size))
        name = document["manifest"]["base"]["folder"]
    except (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return name if is_safe_name(name) else None


def check_counterparts(manifest: Manifest, base: Manifest, url: str) -> None:
    """Check that a delta base has every tensor that a checkpoint holds differences to.

    Raises:
        CorruptCheckpointError: it has none of that name, dtype and shape, or in another place.
    """
    found = {entry.place: (entry.dtype, entry.shape) for entry in base.tensors_of("optimizer")}
    for entry in manifest.tensors:
        if entry.deltas and found.get(entry.place) != (entry.dtype, entry.shape):
            raise CorruptCheckpointError(
                f"{url}: it holds differences to the tensor {entry.name!r} of its base, which has "
                f"none of {entry.dtype} and shape {list(entry.shape)} in the same place."
            )
