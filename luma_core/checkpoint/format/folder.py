"""The life of one checkpoint folder: what is there, what replaces it, what may be removed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator

from luma_core.checkpoint.format.manifest import MAX_MANIFEST_BYTES, Manifest
from luma_core.checkpoint.format.parse import parse_manifest
from luma_core.checkpoint.format.shard import written_by_us
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.names import INDEX_NAME, MANIFEST_NAME, shard_generation
from luma_core.checkpoint.storage.store import ABSENT, Store, changed_meanwhile, storage_errors
from luma_core.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    ConfigurationError,
    CorruptCheckpointError,
    UnknownCodecError,
)

GRACE_SECONDS = 24 * 3600.0
"""What is older than this and belongs to no checkpoint is not the work of a saver any more."""

_GENERATION_SPREAD = 1 << 31
_READ_TRIES = 5


def read_manifest(store: Store) -> Manifest:
    """Return the manifest of the checkpoint in ``store``.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: the manifest cannot be trusted.
        UnsupportedVersionError: a newer version wrote it.
        UnknownCodecError: it uses a codec that is not known here.
    """
    where = f"{store.url}/{MANIFEST_NAME}"
    data = _manifest_bytes(store)
    for _ in range(_READ_TRIES):
        try:
            return parse_manifest(data, where=where)
        except CorruptCheckpointError:
            # Size and content may be those of two manifests, one of which replaced the other.
            seen, data = data, _manifest_bytes(store)
            if seen == data:
                raise
    return parse_manifest(data, where=where)


def _manifest_bytes(store: Store) -> bytes:
    size = store.size(MANIFEST_NAME)
    if size is None:
        raise _not_found(store)
    if size > MAX_MANIFEST_BYTES:
        raise CorruptCheckpointError(
            f"{store.url}/{MANIFEST_NAME}: {size} bytes; a manifest has at most "
            f"{MAX_MANIFEST_BYTES}."
        )
    try:
        return store.read_range(MANIFEST_NAME, 0, size)
    except FileNotFoundError as error:
        raise _not_found(store) from error


@contextlib.contextmanager
def reading(store: Store, manifest: Manifest, file: str) -> Iterator[None]:
    """Tell failures of the store as such, and damage as such only where the checkpoint is there.

    Args:
        store: the folder.
        manifest: of the checkpoint that was opened there.
        file: that is read.
    """
    with storage_errors(f"{store.url}/{file}"):
        try:
            yield
        except CorruptCheckpointError as error:
            refuse_replaced(store, manifest, error)
            raise


def refuse_replaced(store: Store, manifest: Manifest, cause: Exception | None = None) -> None:
    """Refuse to go on where the folder does not hold the checkpoint any more that was opened.

    Raises:
        CheckpointReplacedError: saying what happened to it.
    """
    try:
        if read_manifest(store).digest == manifest.digest:
            return
        what, hint = "replaced", "Open it again; what was read before belongs to the other one."
    except CheckpointNotFoundError:
        what, hint = "removed", "Open another one, and pin those that are in use."
    except (CheckpointError, UnknownCodecError):
        return
    raise CheckpointReplacedError(
        f"{store.url}: the checkpoint was {what} after it was opened.", hint=hint
    ) from cause


def _not_found(store: Store) -> CheckpointNotFoundError:
    if isinstance(store, LocalStore) and not store.path.exists():
        return CheckpointNotFoundError(
            f"no checkpoint here: there is no folder {store.url}.",
            hint="Check the path; a relative one starts at the current folder.",
        )
    if isinstance(store, LocalStore) and not store.path.is_dir():
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
        alone: whether no other saver can be at work in the folder.

    Raises:
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False, or an index of
            model shards that is not part of any.
    """

    def __init__(self, store: Store, *, overwrite: bool, with_model: bool, alone: bool) -> None:
        self.store = store
        self._alone = alone
        self._expected = store.version(MANIFEST_NAME)
        self._occupied = self._expected != ABSENT
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
        unlisted = {name for name in names - self._listed if self._is_ours(name)}
        # Without a readable manifest nobody knows which shards it lists, so all are kept for now.
        unknown = self._occupied and self._previous is None
        self._leftovers = set() if unknown else unlisted
        self._doubtful = unlisted if unknown else set()
        self.generation = self._next_generation(names)

    def _next_generation(self, names: set[str]) -> int:
        """Return a new generation, so that no other save uses the same shard names."""
        taken = names - self._leftovers if self._alone else names
        last = max((shard_generation(name) or 0 for name in taken), default=0)
        if self._previous is not None:
            last = max(last, self._previous.generation)
        return last + 1 + (0 if self._alone else secrets.randbelow(_GENERATION_SPREAD))

    def _readable_manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.store)
        except (CheckpointError, UnknownCodecError):
            return None

    def _is_ours(self, name: str) -> bool:
        if shard_generation(name) is None:
            return False
        try:
            return written_by_us(self.store, name)
        except FileNotFoundError:
            return False

    def clean(self) -> None:
        """Remove files of interrupted saves, but none that a running save may have written."""
        if self._alone:
            self.store.discard_leftovers()
            self._delete(self._leftovers)

    def commit(self, manifest: Manifest) -> None:
        """Make ``manifest`` the folder's checkpoint.

        Raises:
            ConcurrentSaveError: another saver committed since this one began.
        """
        data = manifest.to_bytes()
        if len(data) > MAX_MANIFEST_BYTES:
            raise ConfigurationError(
                f"the manifest would take {len(data)} bytes, more than {MAX_MANIFEST_BYTES}.",
                hint="Keep large values in extra= as tensors.",
            )
        with self.store.write(MANIFEST_NAME, expected=self._expected) as out:
            out.write(data)
            # The old index must not be found beside the new manifest. It is derived, so the old
            # checkpoint stays whole without it should this be the last thing that happens.
            if INDEX_NAME in self._listed or (self._occupied and self._previous is None):
                if self.store.version(MANIFEST_NAME) != self._expected:
                    raise changed_meanwhile(f"{self.store.url}/{MANIFEST_NAME}")
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
        """Remove the files of the checkpoint that ``manifest`` replaced, and old leftovers.

        Where the store refuses late commits, a saver that began before this one's commit cannot
        commit any more, so the shards that were there when this save began may go as well.
        """
        old = set(self._listed)
        if self._alone:
            old |= self._doubtful
        elif self.store.strategy.refuses_late:
            old |= self._doubtful | self._leftovers
            self.store.discard_leftovers(older_than_seconds=GRACE_SECONDS)
        self._delete(old - {file.name for file in manifest.files})

    def _delete(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self.store.delete(name)
