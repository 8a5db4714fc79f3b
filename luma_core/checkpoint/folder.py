"""The life of one checkpoint folder: what is there, what replaces it, what may be removed."""

from __future__ import annotations

from luma_core.checkpoint.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from luma_core.checkpoint.names import INDEX_NAME, MANIFEST_NAME, shard_generation
from luma_core.checkpoint.shard import written_by_us
from luma_core.checkpoint.store import LocalStore, Store
from luma_core.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    UnknownCodecError,
)


def read_manifest(store: Store) -> Manifest:
    """Return the manifest of the checkpoint in ``store``.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: the manifest cannot be trusted.
        UnsupportedVersionError: a newer version wrote it.
        UnknownCodecError: it uses a codec that is not known here.
    """
    size = store.size(MANIFEST_NAME)
    if size is None:
        raise _not_found(store)
    if size > MAX_MANIFEST_BYTES:
        raise CorruptCheckpointError(
            f"{store.url}/{MANIFEST_NAME}: {size} bytes; a manifest has at most "
            f"{MAX_MANIFEST_BYTES}."
        )
    data = store.read_range(MANIFEST_NAME, 0, size)
    return parse_manifest(data, where=f"{store.url}/{MANIFEST_NAME}")


def _not_found(store: Store) -> CheckpointNotFoundError:
    if isinstance(store, LocalStore) and not store.folder.exists():
        return CheckpointNotFoundError(
            f"no checkpoint here: there is no folder {store.url}.",
            hint="Check the path; a relative one starts at the current folder.",
        )
    if isinstance(store, LocalStore) and not store.folder.is_dir():
        return CheckpointNotFoundError(
            f"{store.url}: no checkpoint here: it is a file, and a checkpoint is a folder.",
            hint="`luma convert` reads a file that torch.save wrote.",
        )
    return CheckpointNotFoundError(
        f"{store.url}: no checkpoint here: {MANIFEST_NAME} is missing.",
        hint="A save writes it last, so an interrupted first save leaves none.",
    )


class CheckpointFolder:
    """A folder that is about to receive a checkpoint.

    Args:
        store: the folder.
        overwrite: whether a checkpoint there may be replaced.
        with_model: whether an index of model shards will be written.

    Raises:
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False, or an index of
            model shards that is not part of any.
    """

    def __init__(self, store: Store, *, overwrite: bool, with_model: bool) -> None:
        self.store = store
        self._occupied = store.size(MANIFEST_NAME) is not None
        if self._occupied and not overwrite:
            raise CheckpointExistsError(
                f"{store.url}: there is a checkpoint already.",
                hint="Choose another folder, or allow it to be overwritten.",
            )
        self._previous = self._readable_manifest() if self._occupied else None
        names = set(store.names())
        self._listed = {file.name for file in self._previous.files} if self._previous else set()
        if with_model and not self._occupied and INDEX_NAME in names:
            raise CheckpointExistsError(
                f"{store.url}: {INDEX_NAME} belongs to other files here.",
                hint="Choose an empty folder.",
            )
        # Without a readable manifest nobody knows which shards it lists, so all are kept for now.
        unknown = self._occupied and self._previous is None
        self._leftovers = (
            set() if unknown else {name for name in names - self._listed if self._is_ours(name)}
        )
        self.generation = 1 + max(
            (shard_generation(name) or 0 for name in names - self._leftovers),
            default=0,
        )
        if self._previous is not None:
            self.generation = max(self.generation, self._previous.generation + 1)

    def _readable_manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.store)
        except (CheckpointError, UnknownCodecError):
            return None

    def _is_ours(self, name: str) -> bool:
        return shard_generation(name) is not None and written_by_us(self.store, name)

    def clean(self) -> None:
        """Remove what interrupted saves left; nothing that the present manifest lists."""
        self.store.discard_leftovers()
        for name in sorted(self._leftovers):
            self.store.delete(name)

    def commit(self, manifest: Manifest) -> None:
        """Make ``manifest`` the folder's checkpoint."""
        data = manifest.to_bytes()
        if len(data) > MAX_MANIFEST_BYTES:
            raise ConfigurationError(
                f"the manifest would take {len(data)} bytes, more than {MAX_MANIFEST_BYTES}.",
                hint="Keep large values in extra= as tensors.",
            )
        with self.store.write(MANIFEST_NAME) as out:
            out.write(data)
            # The old index must not be found beside the new manifest. It is derived, so the old
            # checkpoint stays whole without it should this be the last thing that happens.
            if INDEX_NAME in self._listed or (self._occupied and self._previous is None):
                self.store.delete(INDEX_NAME)
            out.commit()

    def holds(self, manifest: Manifest) -> bool:
        """Whether ``manifest`` is in place, or might be."""
        try:
            return read_manifest(self.store).digest == manifest.digest
        except (CheckpointError, UnknownCodecError):
            return False
        except OSError:
            return True

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self.store.write(name) as out:
            out.write(data)
            out.commit()

    def retire(self, manifest: Manifest) -> None:
        """Remove the files of the checkpoint that ``manifest`` replaced."""
        kept = {file.name for file in manifest.files}
        old = self._listed
        if self._occupied and self._previous is None:
            old = {name for name in self.store.names() if self._is_ours(name)}
        for name in sorted(old - kept):
            self.store.delete(name)
