"""Reads ``luma.json``, and checks all of it before any of it is used."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luma_core.checkpoint.format.consistency import check_consistency
from luma_core.checkpoint.format.manifest import MAX_MANIFEST_BYTES, NEWEST_VERSION, Manifest
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.errors import CorruptCheckpointError, UnsupportedVersionError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def parse_manifest(data: bytes, *, where: str = MANIFEST_NAME) -> Manifest:
    """Return the manifest in ``data``, the content of ``luma.json``.

    Args:
        data: at most `MAX_MANIFEST_BYTES` bytes.
        where: the file, for messages.

    Raises:
        CorruptCheckpointError: it is not canonical JSON, its checksum is wrong, or a field is
            missing, unknown or impossible.
        UnsupportedVersionError: it was written by a newer version of the format.
        UnknownCodecError: a parameter is stored by a codec that is not known here.
        UnsafeNameError: a file's name could point outside the folder.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptCheckpointError(
            f"{where}: {len(data)} bytes; a manifest has at most {MAX_MANIFEST_BYTES}."
        )
    body = _body_of(_decode(data, where), where)
    manifest = _validated(body, where)
    if manifest.to_bytes() != data:
        raise CorruptCheckpointError(
            f"{where}: the checksum does not match the manifest, or the file is not in canonical "
            "form: it was changed after it was written.",
            hint="Restore the file from a copy.",
        )
    check_consistency(manifest, where)
    return manifest


def _decode(data: bytes, where: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: not valid JSON: {error}.") from error


def _body_of(document: Any, where: str) -> dict[str, Any]:
    body = document.get("manifest") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        raise CorruptCheckpointError(f"{where}: it must be an object with the field 'manifest'.")
    # A newer version may have other fields, so it is told before any of them is looked at.
    version = body.get("version")
    if type(version) is int and version > NEWEST_VERSION:
        raise UnsupportedVersionError(
            f"{where}: format version {version}; this software reads up to {NEWEST_VERSION}.",
            hint="Upgrade the package 'luma-state'.",
        )
    return body


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _validated(body: dict[str, Any], where: str) -> Manifest:
    from pydantic import ValidationError

    # Fields with defaults are defaults for callers only: a file must name them all.
    for name in ("format", "version", "aliases"):
        if name not in body:
            raise CorruptCheckpointError(f"{where}: manifest.{name}: Field required.")
    try:
        return _adapter().validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in ("manifest", *first["loc"]))
        raise CorruptCheckpointError(f"{where}: {place}: {first['msg']}.") from error
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: {error}.") from error
