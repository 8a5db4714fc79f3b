"""What listings tell of a manifest, read without building the manifest itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from luma_core.checkpoint import Manifest
from luma_core.checkpoint.format import FileEntry
from luma_core.checkpoint.format.manifest import NEWEST_VERSION, BaseEntry
from luma_core.checkpoint.format.manifest import Summary as Totals
from luma_core.checkpoint.storage.names import is_safe_name
from luma_core.codecs import codec_names
from luma_core.wire import CheckpointInfo

_ADAMW_BYTES_PER_ELEMENT = 8

_HEAD = b'{\n "checksum": "sha256:'
_BODY = b'",\n "manifest": '
_TAIL = b"\n}\n"
_DIGEST_CHARACTERS = 64


@dataclass(frozen=True)
class Summary:
    """What is kept of a manifest.

    Attributes:
        info: its entry in listings, without pins and labels.
        files: what it names.
        base: the step in the same run that a delta checkpoint needs; ``None`` where it is full.
    """

    info: CheckpointInfo
    files: tuple[FileEntry, ...] = ()
    base: str | None = None


class _Codec(BaseModel):
    name: str


class _Parameter(BaseModel):
    codecs: dict[str, _Codec]


class _Known(BaseModel):
    """The fields of a manifest that listings are made of."""

    model_config = ConfigDict(strict=True)

    format: Literal["luma"]
    version: int
    algorithm: str
    created: str
    parameters: tuple[_Parameter, ...]
    files: tuple[FileEntry, ...]
    summary: Totals
    base: BaseEntry | None = None


def quick_summary(run: str, step: str, data: bytes) -> Summary | None:
    """Return the summary of a manifest with the right checksum; ``None`` where it is not so plain.

    Much faster than reading the manifest, as nothing is written out again to compare it: the body
    inside the document is its canonical form with each line one space further in. Whether its
    fields fit each other is not checked; that is done before the checkpoint is used.

    Args:
        run: of the checkpoint.
        step: of it.
        data: content of ``luma.json``.
    """
    start = len(_HEAD) + _DIGEST_CHARACTERS
    body_at = start + len(_BODY)
    plain = data.startswith(_HEAD) and data[start:body_at] == _BODY and data.endswith(_TAIL)
    if not plain:
        return None
    body = data[body_at : -len(_TAIL)].replace(b"\n ", b"\n") + b"\n"
    digest = data[len(_HEAD) : start].decode("ascii", "replace")
    if hashlib.sha256(body).hexdigest() != digest:
        return None
    try:
        known = _Known.model_validate_json(body)
    except ValidationError:
        return None
    names = {codec.name for one in known.parameters for codec in one.codecs.values()}
    if known.version > NEWEST_VERSION or not names <= set(codec_names()):
        return None
    if not all(is_safe_name(file.name) and file.bytes >= 0 for file in known.files):
        return None
    return _summary(run, step, known, digest)


def summary_of(run: str, step: str, manifest: Manifest) -> Summary:
    """Return the summary of a manifest."""
    return _summary(run, step, manifest, manifest.digest)


def _summary(run: str, step: str, manifest: Manifest | _Known, digest: str) -> Summary:
    totals = manifest.summary
    info = CheckpointInfo(
        run=run,
        step=step,
        created=manifest.created,
        algorithm=manifest.algorithm,
        optimizer_step=totals.step,
        parameters=totals.parameters,
        elements=totals.elements,
        state_bytes=totals.state_bytes,
        stored_bytes=totals.stored_bytes,
        bytes=sum(file.bytes for file in manifest.files),
        adamw_bytes=_ADAMW_BYTES_PER_ELEMENT * totals.elements,
        digest=digest,
    )
    base = None if manifest.base is None else manifest.base.folder
    return Summary(info, manifest.files, base)
