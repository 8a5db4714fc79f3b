"""How an upload becomes a checkpoint, and how a checkpoint ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import MANIFEST_NAME, FileEntry
from luma_core.checkpoint.format.folder import read_manifest
from luma_core.checkpoint.steps import STEP_NAME
from luma_core.checkpoint.storage.names import INDEX_NAME
from luma_core.checkpoint.storage.store import ABSENT, Store, Version, storage_errors
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    LumaError,
    StorageError,
    some_names,
)
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.claims import claimed, remove_empty
from luma_server.catalog.place import not_found
from luma_server.http.problems import ApiError
from luma_server.uploads.record import Record, session_store
from luma_server.uploads.staging import StagingArea, UploadPart, WrongFileError

REPLACING_NAME = "replacing.json"

MAX_MARK_BYTES = 1000
"""Longest mark of a `CheckpointManager`."""


@dataclass(frozen=True)
class _Present:
    """What is at the target now."""

    version: Version
    manifest: Manifest | None


def commit_upload(
    catalog: Catalog, record: Record, staging: StagingArea, manifest: Manifest
) -> None:
    """Publish a session's files and then its manifest; may be done again after any failure.

    Files appear under names that no visible manifest names, unless a checkpoint with the same
    names is replaced: that one's manifest goes first.

    Raises:
        ApiError: something is missing or wrong.
        CheckpointExistsError: there is a checkpoint already.
        ConcurrentSaveError: somebody else is at work there.
        StorageError: the store failed.
    """
    run, step = record.run, record.step
    target = catalog.root.checkpoint(run, step)
    _check_base(catalog, record, manifest)
    with storage_errors(f"{run}/{step}"), claimed(catalog.root, run, step) as tick:
        present = _present(target)
        digest = None if present.manifest is None else present.manifest.digest
        if digest == manifest.digest:
            return
        if digest is not None or not _is_replacing(catalog, record):
            check_expected(run, step, digest, record.expected)
        if present.version != ABSENT:
            _check_replaceable(catalog, record)
        parts = _complete_parts(record, staging, manifest)
        for file in manifest.files:
            staging.check(file.name, parts[file.name], file.sha256)
            tick()
        if _must_go_first(present, manifest):
            _note_replacing(catalog, record)
            target.delete(MANIFEST_NAME)
            present = replace(present, version=ABSENT)
        _publish(catalog, record, staging, manifest, parts, tick)
        tick()
        with target.write(MANIFEST_NAME, expected=present.version) as out:
            out.write(manifest.to_bytes())
            out.commit()
        if present.manifest is not None:
            kept = {file.name for file in manifest.files}
            _remove(target, (file.name for file in present.manifest.files if file.name not in kept))
    catalog.changed(run, step)


def check_expected(run: str, step: str, digest: str | None, expected: str | None) -> None:
    """Check that the checkpoint that would be replaced is the one that is meant.

    Raises:
        ApiError: it is another one, or there is none any more.
    """
    if expected is not None and digest != expected:
        raise ApiError(
            "checkpoint_changed",
            f"the checkpoint {run}/{step} is not the one that was to be replaced.",
            hint="Look at it, and send yours again to replace it.",
        )


def delete_checkpoint(
    catalog: Catalog, run: str, step: str, *, expected: str | None = None
) -> None:
    """Remove a checkpoint, its manifest first; files it does not name are left.

    Args:
        catalog: where it is.
        run: its run.
        step: its step.
        expected: digest of the one that is meant; any by default.

    Raises:
        CheckpointNotFoundError: there is none.
        ApiError: it is pinned, or another one needs it.
        ConcurrentSaveError: somebody else is at work there.
        StorageError: the store failed.
    """
    catalog.summary(run, step)
    target = catalog.root.checkpoint(run, step)
    with storage_errors(f"{run}/{step}"):
        with claimed(catalog.root, run, step):
            present = _present(target)
            if present.version == ABSENT:
                raise not_found(run, step)
            digest = None if present.manifest is None else present.manifest.digest
            check_expected(run, step, digest, expected)
            _check_free(catalog, run, step)
            _remove(target, [MANIFEST_NAME])
            if present.manifest is not None:
                _remove(target, (file.name for file in present.manifest.files))
            _remove(target, [STEP_NAME])
        remove_empty(catalog.root, run, step)
    catalog.changed(run, step)
    catalog.annotations.forget(run, step)


def _check_base(catalog: Catalog, record: Record, manifest: Manifest) -> None:
    base = manifest.base
    if base is None:
        return
    try:
        found = catalog.info(record.run, base.folder).digest
    except CheckpointNotFoundError:
        found = None
    if found != base.digest:
        raise ApiError(
            "invalid_manifest",
            f"it holds differences to {record.run}/{base.folder}, which is not here as it was.",
            hint="Push that checkpoint first, or flatten this one: luma flatten.",
        )


def _check_replaceable(catalog: Catalog, record: Record) -> None:
    if not record.overwrite:
        raise CheckpointExistsError(
            f"there is a checkpoint {record.run}/{record.step} already.",
            hint="Choose another step, or allow it to be overwritten.",
        )
    _check_free(catalog, record.run, record.step)


def _check_free(catalog: Catalog, run: str, step: str) -> None:
    if catalog.annotations.pinned_now(run, step):
        raise ApiError(
            "pinned", f"{run}/{step} is pinned.", hint="Unpin it first: luma pin --remove."
        )
    child = catalog.needed_by(run, step)
    if child is not None:
        raise ApiError(
            "in_use",
            f"{run}/{child} holds differences to {run}/{step}.",
            hint=f"Delete or flatten {run}/{child} first.",
        )


def _present(target: Store) -> _Present:
    version = target.version(MANIFEST_NAME)
    if version == ABSENT:
        return _Present(version, None)
    try:
        return _Present(version, read_manifest(target))
    except StorageError:
        raise
    except LumaError:
        return _Present(version, None)


def _complete_parts(
    record: Record, staging: StagingArea, manifest: Manifest
) -> dict[str, list[UploadPart]]:
    found: dict[str, list[UploadPart]] = {}
    missing = []
    for file in manifest.files:
        parts = [] if file.name in record.adopted else _in_order(staging.parts(file.name))
        found[file.name] = parts
        if file.name not in record.adopted and not _whole(file, parts, record.part_bytes):
            missing.append(file.name)
    if missing:
        raise ApiError(
            "upload_incomplete",
            f"parts are missing of {some_names(missing)}.",
            hint=f"GET /v1/uploads/{record.id} tells which have arrived.",
        )
    return found


def _in_order(parts: dict[int, UploadPart]) -> list[UploadPart]:
    return [parts[number] for number in sorted(parts)]


def _whole(file: FileEntry, parts: list[UploadPart], part_bytes: int) -> bool:
    return (
        bool(parts)
        and [part.number for part in parts] == list(range(1, len(parts) + 1))
        and all(part.size_bytes == part_bytes for part in parts[:-1])
        and sum(part.size_bytes for part in parts) == file.bytes
    )


def _must_go_first(present: _Present, manifest: Manifest) -> bool:
    """Whether the old manifest has to go before files of the new one can come."""
    if present.version == ABSENT:
        return False
    if present.manifest is None:
        return True
    old = {file.name: file.sha256 for file in present.manifest.files}
    collide = any(old.get(file.name, file.sha256) != file.sha256 for file in manifest.files)
    return collide or INDEX_NAME in old


def _note_replacing(catalog: Catalog, record: Record) -> None:
    """Remember that the old manifest goes, for a commit that is made again after a failure."""
    with session_store(catalog.root, record.id).write(REPLACING_NAME) as out:
        out.write(b"{}")
        out.commit()


def _is_replacing(catalog: Catalog, record: Record) -> bool:
    if record.expected is None:
        return False
    return session_store(catalog.root, record.id).size(REPLACING_NAME) is not None


def _publish(
    catalog: Catalog,
    record: Record,
    staging: StagingArea,
    manifest: Manifest,
    parts: dict[str, list[UploadPart]],
    tick: Callable[[], None],
) -> None:
    target = catalog.root.checkpoint(record.run, record.step)
    for file in manifest.files:
        source = record.adopted.get(file.name)
        adopted = None
        if source is not None:
            adopted = (catalog.root.checkpoint(source.run, source.step), source.name)
        try:
            staging.publish(
                file.name, parts[file.name], file.sha256, target, adopted=adopted, tick=tick
            )
        except FileNotFoundError as error:
            raise WrongFileError(file.name) from error
    _publish_mark(staging, target, tick)


def _publish_mark(staging: StagingArea, target: Store, tick: Callable[[], None]) -> None:
    """Publish the mark of a `CheckpointManager`, which no manifest names."""
    parts = _in_order(staging.parts(STEP_NAME))
    if len(parts) == 1 and parts[0].size_bytes <= MAX_MARK_BYTES:
        staging.check(STEP_NAME, parts, parts[0].sha256)
        staging.publish(STEP_NAME, parts, parts[0].sha256, target, adopted=None, tick=tick)


def _remove(target: Store, names: Iterable[str]) -> None:
    for name in names:
        target.delete(name)
