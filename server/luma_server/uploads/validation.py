"""Validation of an upload: what it may bring, and what need not be sent."""

from __future__ import annotations

import logging
from dataclasses import replace

from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import parse_manifest
from luma_core.errors import CheckpointExistsError, CheckpointNotFoundError, LumaError
from luma_server.catalog.checkpoints import Catalog
from luma_server.http.access import Principal
from luma_server.http.problems import ApiError
from luma_server.settings import Settings
from luma_server.uploads.commit import check_expected
from luma_server.uploads.record import Record, Source
from luma_server.uploads.staging import StagingArea, file_sha256

_log = logging.getLogger(__name__)


def parse_upload(text: str, settings: Settings) -> Manifest:
    """Return the manifest in ``text``, the content of ``luma.json``.

    Raises:
        ApiError: it cannot be trusted, or is of a checkpoint that is too large.
    """
    data = text.encode("utf-8", "replace")
    if len(data) > settings.max_manifest_bytes:
        raise ApiError(
            "too_large",
            f"a manifest of {len(data)} bytes; at most {settings.max_manifest_bytes}.",
        )
    try:
        manifest = parse_manifest(data)
    except LumaError as error:
        raise ApiError("invalid_manifest", error.message, hint=error.hint) from error
    total = sum(file.bytes for file in manifest.files)
    if len(manifest.files) > settings.max_upload_files or total > settings.max_upload_bytes:
        raise ApiError(
            "too_large",
            f"{len(manifest.files)} files of {total} bytes; at most "
            f"{settings.max_upload_files} of {settings.max_upload_bytes}.",
        )
    return manifest


def check_place(
    catalog: Catalog,
    run: str,
    step: str,
    manifest: Manifest | None,
    *,
    overwrite: bool,
    expected: str | None,
) -> None:
    """Check early what the commit checks again: whether the checkpoint can be put there.

    Raises:
        ApiError: there is one that is pinned, or another one than ``expected``.
        CheckpointExistsError: there is one and ``overwrite`` is False.
    """
    try:
        known = catalog.info(run, step)
    except CheckpointNotFoundError:
        check_expected(run, step, None, expected)
        return
    check_expected(run, step, known.digest, expected)
    same = manifest is not None and manifest.digest == known.digest
    if known.pinned and not same:
        raise ApiError(
            "pinned", f"{run}/{step} is pinned.", hint="Unpin it first: luma pin --remove."
        )
    if not overwrite and not same:
        raise CheckpointExistsError(
            f"there is a checkpoint {run}/{step} already.",
            hint="Choose another step, or allow it to be overwritten.",
        )


def adopt_files(
    catalog: Catalog, principal: Principal, record: Record, staging: StagingArea
) -> Record:
    """Take over files whose content the server has, after reading it again.

    Only checkpoints that the token may read are looked at, so that nobody learns what others have.
    """
    adopted = {}
    if record.files and principal.may_see(record.run):
        catalog.learn(record.run)
    for file in record.files or ():
        place = catalog.find_content(file.sha256, file.size_bytes, principal.may_see)
        if place is None or not file.size_bytes:
            continue
        source = catalog.root.checkpoint(place[0], place[1])
        try:
            staging.adopt(file.name, source, place[2])
            if file_sha256(source, place[2], file.size_bytes) == file.sha256:
                adopted[file.name] = Source(*place)
                continue
        except (OSError, LumaError) as error:
            _log.info("a file could not be taken over: %s", error)
        staging.clear(file.name)
    return replace(record, adopted=adopted)
