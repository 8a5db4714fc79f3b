"""The manifest ``luma.json``: what a checkpoint holds, as frozen values.

The file is canonical JSON, ``{"checksum": "sha256:<hex>", "manifest": {...}}`` with sorted keys,
one space of indentation and one final newline; the checksum is that of the manifest's own
canonical JSON. A reader requires the file to be exactly what it would write itself, so no byte of
it can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from luma_core.catalog import GENERIC_CODECS
from luma_core.checkpoint.format.compression import Chunk, Compression
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.state import SCALAR_STATE_BYTES

FORMAT: Literal["luma"] = "luma"
VERSION = 1

DELTA_VERSION = 2
"""Of checkpoints with a delta base; the others stay readable for software that knows none."""

PIECES_VERSION = 3
"""Of checkpoints whose tensors are in pieces, written by several ranks; without a delta base."""

PARTS_VERSION = 4
"""Of checkpoints with moments in parts, each coded on its own; without a delta base."""

SHARDED_DELTA_VERSION = 5
"""Of checkpoints with a delta base whose tensors are in pieces or parts."""

GENERIC_VERSION = 6
"""Of checkpoints with state that no rule describes, kept as it is, with a delta base or without."""

NEWEST_VERSION = GENERIC_VERSION
"""The newest version that is read."""

MAX_CHAIN = 32
"""Checkpoints in the longest delta chain. Reading one opens every checkpoint of its chain."""

MAX_MANIFEST_BYTES = 256 << 20
"""Larger manifests are neither written nor read; 100,000 parameters take about a quarter."""

Box = tuple[tuple[int, int], ...]
"""Part of a tensor: the first index and the one behind the last, in each dimension."""

TensorPlace = tuple[str, int, Box | None]
"""A stored tensor's name, its first row, and the part of the parameter that it is of."""

FileKind = Literal["optimizer", "model", "extra", "index"]

_CONFIG: dict[str, Any] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter's state, without its tensors.

    Attributes:
        name: its fully qualified name, or ``param.<i>``.
        shape: its shape.
        dtype: its dtype without ``torch.``.
        group: index of its group.
        step: completed steps.
        noise_key: signed 64-bit key of its rounding noise.
        nonfinite: blocks left out so far because their update was not finite.
        codecs: codec configuration by moment; empty where there is no state yet.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    step: int
    noise_key: int
    nonfinite: int
    codecs: dict[str, dict[str, Any]]

    @property
    def generic(self) -> bool:
        """Whether it has state that no rule describes."""
        # A name may be anything until codecs are made of it: a tuple compares, a dict would hash.
        names = tuple(GENERIC_CODECS)
        return any(config.get("name") in names for config in self.codecs.values())

    @property
    def counter_bytes(self) -> int:
        """Size of ``step``, ``noise_key`` and ``nonfinite``, which state of our rules has."""
        return SCALAR_STATE_BYTES if self.codecs and not self.generic else 0


@dataclass(frozen=True)
class TensorEntry:
    """Where and how one tensor is stored.

    Attributes:
        name: ``<parameter>/<moment>.<field>`` in optimizer shards, the state dict's key in model
            shards, a JSON pointer in extra shards.
        file: name of its shard.
        dtype: safetensors' name of its dtype.
        shape: its shape.
        offset: of its first stored byte in the shard's data section.
        chunks: its stored chunks, each of ``Manifest.chunk_bytes`` raw bytes but the last. Where
            all are raw, the shard's header names the tensor's own dtype and shape; else the chunks
            are one ``U8`` tensor of ``stored_bytes`` elements.
        deltas: empty, or for each chunk the CRC-32 of its raw bytes where it is stored as a
            difference to the base, and None where it is not.
        first_row: of a tensor in pieces, the index of dimension 0 at which this piece of ``shape``
            begins; None where the tensor is whole.
        box: of a field of a moment that is stored in parts, the part of the parameter that it is
            of, which is coded like a tensor of its own; None where the field is the whole moment's.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    chunks: tuple[Chunk, ...]
    deltas: tuple[int | None, ...] = ()
    first_row: int | None = None
    box: Box | None = None

    @property
    def stored_bytes(self) -> int:
        """Size of the tensor in its shard."""
        return sum(chunk.stored_bytes for chunk in self.chunks)

    @property
    def raw(self) -> bool:
        """Whether the shard holds the tensor's own bytes."""
        return all(chunk.raw for chunk in self.chunks)

    @property
    def place(self) -> TensorPlace:
        """What it has in common with its counterpart in a delta base, beside dtype and shape."""
        return self.name, self.first_row or 0, self.box


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint.

    Attributes:
        name: its name in the folder.
        bytes: its size.
        sha256: hex digest of its content.
        kind: ``optimizer``, ``model`` or ``extra`` for shards; ``index`` for the Hub's index of the
            model shards, which is derived: a checkpoint without it can be loaded.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    name: str
    bytes: int
    sha256: str
    kind: FileKind


@dataclass(frozen=True)
class Summary:
    """Totals of the optimizer state.

    Attributes:
        parameters: number of parameters.
        elements: their elements.
        state_bytes: size of all persistent state tensors in memory, counters included.
        stored_bytes: size of the optimizer shards.
        step: completed steps: the largest of any parameter.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    parameters: int
    elements: int
    state_bytes: int
    stored_bytes: int
    step: int


@dataclass(frozen=True)
class BaseEntry:
    """The checkpoint that some chunks are differences to.

    Attributes:
        folder: its name; it lies beside the checkpoint, in the same folder.
        digest: of its manifest.
        chain: the checkpoints that it takes to read it, itself included: 1 where it is full.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    folder: str
    digest: str
    chain: int


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but its tensors' values.

    Attributes:
        format: ``"luma"``.
        version: of the format: 2 where there is a base, 3 where tensors are in pieces, 4 where
            moments are in parts, 5 where there is a base and either of the two, 6 where state is of
            an optimizer that no rule describes, else 1.
        generation: 1 or more, and larger than that of the checkpoint it replaced in place.
        created: when it was written, ISO 8601 in UTC.
        software: what wrote it.
        algorithm: the optimizer's algorithm.
        named: whether parameters have names of their own, so that state is matched by name.
        compression: how optimizer and extra shards are compressed; model shards are not.
        chunk_bytes: raw bytes per chunk.
        groups: options of each parameter group.
        parameters: all parameters, group by group.
        tensors: all stored tensors, shard by shard, by offset.
        aliases: model tensors that share another's memory: name to the name that is stored.
        extra: the caller's own values as JSON; ``{"$tensor": name}`` stands for a tensor.
        files: all files but the manifest.
        summary: totals.
        base: the checkpoint that some chunks are differences to; None where there are none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    created: str
    software: str
    algorithm: str
    named: bool
    compression: Compression
    chunk_bytes: int
    groups: tuple[dict[str, Any], ...]
    parameters: tuple[ParameterEntry, ...]
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]
    summary: Summary
    generation: int
    extra: Any
    aliases: dict[str, str] = field(default_factory=dict)
    format: Literal["luma"] = FORMAT
    version: int = VERSION
    base: BaseEntry | None = None

    @property
    def chain(self) -> int:
        """Checkpoints in its delta chain, itself included: 1 where it is full."""
        return 1 if self.base is None else self.base.chain + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values, with the fields of its version."""
        found = asdict(self)
        if self.version < DELTA_VERSION:
            del found["base"]
        for entry in found["tensors"]:
            if self.version < DELTA_VERSION:
                del entry["deltas"]
            if self.version < PIECES_VERSION:
                del entry["first_row"]
            if self.version < PARTS_VERSION:
                del entry["box"]
        return found

    @cached_property
    def _body(self) -> bytes:
        return canonical_json(self.to_dict())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical JSON, hex: identifies the checkpoint's content."""
        return hashlib.sha256(self._body).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of ``luma.json``."""
        # Line breaks within strings are escaped, so each of these begins a line one level deeper.
        body = self._body.removesuffix(b"\n").replace(b"\n", b"\n ")
        return b'{\n "checksum": "sha256:%b",\n "manifest": %b\n}\n' % (self.digest.encode(), body)

    def files_of(self, *kinds: FileKind) -> Iterator[FileEntry]:
        """Yield the files of the given kinds."""
        return (entry for entry in self.files if entry.kind in kinds)

    def tensors_of(self, kind: ShardKind) -> Iterator[TensorEntry]:
        """Yield the tensors in shards of one kind."""
        shards = {entry.name for entry in self.files_of(kind)}
        return (entry for entry in self.tensors if entry.file in shards)


def version_of(
    tensors: Sequence[TensorEntry],
    base: BaseEntry | None,
    parameters: Sequence[ParameterEntry],
) -> int:
    """Return the least version of the format that can say what a manifest has."""
    if any(entry.generic for entry in parameters):
        return GENERIC_VERSION
    in_parts = any(entry.box is not None for entry in tensors)
    in_pieces = any(entry.first_row is not None for entry in tensors)
    if base is not None:
        return SHARDED_DELTA_VERSION if in_parts or in_pieces else DELTA_VERSION
    if in_parts:
        return PARTS_VERSION
    return PIECES_VERSION if in_pieces else VERSION


def canonical_json(value: Any) -> bytes:
    """Return the one way to write ``value``: sorted keys, one space of indent, final newline.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
