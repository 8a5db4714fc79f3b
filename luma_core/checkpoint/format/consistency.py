"""Checks that a manifest's fields agree with each other, before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from luma_core.checkpoint.format.compression import MAX_CHUNK_BYTES
from luma_core.checkpoint.format.extra import tensor_names
from luma_core.checkpoint.format.manifest import (
    MAX_CHAIN,
    Box,
    Manifest,
    ParameterEntry,
    TensorEntry,
    version_of,
)
from luma_core.checkpoint.format.stored_tensors import (
    box_shape,
    boxes_of_moments,
    is_grid,
    stored_tensors,
)
from luma_core.checkpoint.storage.names import INDEX_NAME, check_name, shard_generation
from luma_core.codecs import codec_from_dict
from luma_core.dtypes import STORED_NAMES, TORCH_NAMES, is_dtype_name, stored_bytes
from luma_core.errors import ConfigurationError, CorruptCheckpointError, UnknownCodecError
from luma_core.state import field_key

_HEX64 = re.compile(r"[0-9a-f]{64}")
_PARAMETER_DTYPES = ("float32", "bfloat16", "float16", "float64")

_MIN_CHUNK_BYTES = 64
_MAX_ELEMENTS = 1 << 59


def check_consistency(manifest: Manifest, where: str) -> None:
    """Check a manifest whose fields have the right types.

    Raises:
        CorruptCheckpointError: naming the field, its value and what it must be.
        UnknownCodecError: a codec is not known here.
        UnsafeNameError: a file's name could point outside the folder.
    """
    version = version_of(manifest.tensors, manifest.base, manifest.parameters)
    if manifest.version != version:
        raise _wrong(where, "version", manifest.version, f"{version}")
    if manifest.generation < 1:
        raise _wrong(where, "generation", manifest.generation, "1 or more")
    if not (
        _MIN_CHUNK_BYTES <= manifest.chunk_bytes <= MAX_CHUNK_BYTES
        and manifest.chunk_bytes % _MIN_CHUNK_BYTES == 0
    ):
        raise _wrong(
            where,
            "chunk_bytes",
            manifest.chunk_bytes,
            f"a multiple of {_MIN_CHUNK_BYTES} up to {MAX_CHUNK_BYTES}",
        )
    _check_files(manifest, where)
    _check_parameters(manifest, where)
    _check_tensors(manifest, where)
    _check_base(manifest, where)
    _check_state_fields(manifest, where)
    _check_aliases(manifest, where)
    _check_extra(manifest, where)


def _wrong(where: str, name: str, value: object, requirement: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{where}: manifest.{name} is {value!r}; it must be {requirement}."
    )


def _check_files(manifest: Manifest, where: str) -> None:
    seen = set()
    for index, entry in enumerate(manifest.files):
        place = f"files.{index}"
        check_name(entry.name)
        if entry.kind == "index":
            if entry.name != INDEX_NAME:
                raise _wrong(where, f"{place}.name", entry.name, repr(INDEX_NAME))
        elif shard_generation(entry.name) is None or not entry.name.startswith(f"{entry.kind}-"):
            raise _wrong(where, f"{place}.name", entry.name, f"a name of an {entry.kind} shard")
        if entry.name in seen:
            raise _wrong(where, f"{place}.name", entry.name, "there once")
        seen.add(entry.name)
        if entry.bytes < 0:
            raise _wrong(where, f"{place}.bytes", entry.bytes, "0 or more")
        if not _HEX64.fullmatch(entry.sha256):
            raise _wrong(where, f"{place}.sha256", entry.sha256, "64 lower-case hex digits")


def _check_parameters(manifest: Manifest, where: str) -> None:
    seen = set()
    for index, entry in enumerate(manifest.parameters):
        place = f"parameters.{index}"
        if entry.name in seen:
            raise _wrong(where, f"{place}.name", entry.name, "there once")
        seen.add(entry.name)
        _check_shape(entry.shape, place, where)
        frozen = not entry.codecs and is_dtype_name(entry.dtype)
        if entry.dtype not in _PARAMETER_DTYPES and not frozen:
            raise _wrong(where, f"{place}.dtype", entry.dtype, " or ".join(_PARAMETER_DTYPES))
        if not 0 <= entry.group < len(manifest.groups):
            raise _wrong(
                where, f"{place}.group", entry.group, f"one of {len(manifest.groups)} groups"
            )
        if not -(1 << 63) <= entry.noise_key < 1 << 63:
            raise _wrong(where, f"{place}.noise_key", entry.noise_key, "a signed 64-bit integer")
        for name in ("step", "nonfinite"):
            value = getattr(entry, name)
            if not 0 <= value < 1 << 63:
                raise _wrong(where, f"{place}.{name}", value, "from 0 to 2**63 - 1")


def _check_shape(shape: tuple[int, ...], place: str, where: str) -> None:
    """Check that a tensor may have a shape, were there the memory."""
    # Sizes and strides are counted in 64 bits, also where another size is 0.
    if any(size < 0 for size in shape) or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise _wrong(where, f"{place}.shape", list(shape), "sizes of 0 or more, 2**59 in all")


def _check_tensors(manifest: Manifest, where: str) -> None:
    shards = {entry.name: entry for entry in manifest.files if entry.kind != "index"}
    for name, group in groupby(manifest.tensors, key=lambda entry: entry.file):
        # A shard that comes twice was popped, so scattered tensors fail here too.
        shard = shards.pop(name, None)
        if shard is None:
            raise _wrong(where, "tensors", name, "a shard of manifest.files, in one run")
        end = 0
        seen: set[str] = set()
        for entry in group:
            place = f"tensor {entry.name!r}"
            if entry.name in seen:
                raise _wrong(where, place, entry.name, "there once")
            seen.add(entry.name)
            _check_tensor(entry, manifest.chunk_bytes, place, where)
            if entry.offset != end:
                raise _wrong(
                    where, f"{place}.offset", entry.offset, f"{end}: neither gap nor overlap"
                )
            end += entry.stored_bytes
        if end > shard.bytes:
            raise _wrong(where, f"file {name!r}.bytes", shard.bytes, f"at least {end}")
    if shards:
        raise _wrong(where, "files", next(iter(shards)), "the file of some tensor")


def _check_tensor(entry: TensorEntry, chunk_bytes: int, place: str, where: str) -> None:
    if entry.dtype not in TORCH_NAMES:
        raise _wrong(where, f"{place}.dtype", entry.dtype, "a known dtype")
    _check_shape(entry.shape, place, where)
    total = stored_bytes(entry.dtype, entry.shape)
    count = -(-total // chunk_bytes)
    if len(entry.chunks) != count:
        raise _wrong(
            where,
            f"{place}.chunks",
            f"{len(entry.chunks)} chunks",
            f"{count}, for {total} bytes of shape {list(entry.shape)}",
        )
    for index, chunk in enumerate(entry.chunks):
        raw = min(chunk_bytes, total - index * chunk_bytes)
        good = chunk.stored_bytes == raw if chunk.raw else 0 < chunk.stored_bytes < raw
        if not good or not 0 <= chunk.crc32 < 1 << 32:
            raise _wrong(
                where, f"{place}.chunks.{index}", list(chunk), f"a description of {raw} bytes"
            )


def _check_base(manifest: Manifest, where: str) -> None:
    """Check the base, and which chunks are differences to it."""
    base = manifest.base
    if base is not None:
        check_name(base.folder)
        if not _HEX64.fullmatch(base.digest):
            raise _wrong(where, "base.digest", base.digest, "64 lower-case hex digits")
        if not 1 <= base.chain < MAX_CHAIN:
            raise _wrong(where, "base.chain", base.chain, f"from 1 to {MAX_CHAIN - 1}")
    state = {entry.name for entry in manifest.files_of("optimizer")}
    for entry in manifest.tensors:
        place = f"tensor {entry.name!r}.deltas"
        if entry.deltas and (base is None or entry.file not in state):
            raise _wrong(where, place, "not empty", "empty without a base or optimizer state")
        if len(entry.deltas) not in (0, len(entry.chunks)):
            raise _wrong(
                where, place, f"{len(entry.deltas)} items", f"{len(entry.chunks)} items, or empty"
            )
        for chunk, crc32 in zip(entry.chunks, entry.deltas, strict=False):
            if crc32 is not None and (chunk.raw or not 0 <= crc32 < 1 << 32):
                raise _wrong(where, place, crc32, "the CRC-32 of a chunk that is not raw, or null")


def tensor_name(parameter: str, key: str) -> str:
    """Return the stored name of a parameter's field: ``<parameter>/<moment>.<field>``."""
    return f"{parameter}/{key}"


def state_fields(
    entry: ParameterEntry, boxes: Mapping[str, Sequence[Box]] = MappingProxyType({})
) -> Iterator[tuple[str, Box | None, str, tuple[int, ...]]]:
    """Yield key, box, safetensors dtype and shape of each stored field of a parameter.

    Args:
        entry: the parameter's.
        boxes: of the parts of moments that are stored in parts, by moment.

    Raises:
        ConfigurationError: a codec is not known, or its configuration cannot work.
    """
    for moment, config in entry.codecs.items():
        codec = codec_from_dict(config)
        for box in boxes.get(moment, [None]):
            shape = entry.shape if box is None else box_shape(box)
            for name, spec in codec.layout(shape).items():
                stored = STORED_NAMES.get(spec.dtype_name)
                if stored is None:
                    raise ConfigurationError(
                        f"dtype torch.{spec.dtype_name} of {moment}.{name} cannot be stored."
                    )
                yield field_key(moment, name), box, stored, spec.shape


def _check_state_fields(manifest: Manifest, where: str) -> None:
    state = list(manifest.tensors_of("optimizer"))
    files = {entry.name for entry in manifest.files_of("optimizer")}
    for other in manifest.tensors:
        for field in ("first_row", "box"):
            if getattr(other, field) is not None and other.file not in files:
                raise _wrong(where, f"tensor {other.name!r}.{field}", "there", "null")
    found = stored_tensors(state)
    for tensor in found.values():
        rows = [entry.first_row for entry in tensor.entries]
        if tensor.entries[0].box is not None and any(row is not None for row in rows):
            raise _wrong(where, "tensors", "a piece of a part", "a piece or a part")
        if len(rows) > 1 and None in rows:
            raise _wrong(where, "tensors", "an optimizer tensor", "there once")
    parts = boxes_of_moments(state)
    for entry in manifest.parameters:
        boxes = {
            moment: parts[at] for moment in entry.codecs if (at := (entry.name, moment)) in parts
        }
        for moment, some in boxes.items():
            if not is_grid(entry.shape, some):
                raise _wrong(
                    where,
                    f"boxes of {tensor_name(entry.name, moment)!r}",
                    [list(map(list, box)) for box in some[:3]],
                    f"parts that make up the shape {list(entry.shape)}",
                )
        try:
            fields = list(state_fields(entry, boxes))
        except UnknownCodecError as error:
            raise UnknownCodecError(
                f"{where}: parameter {entry.name!r}: {error.message}", hint=error.hint
            ) from error
        except (ConfigurationError, TypeError) as error:
            raise CorruptCheckpointError(f"{where}: parameter {entry.name!r}: {error}") from error
        for key, box, dtype, shape in fields:
            name = tensor_name(entry.name, key)
            stored = found.pop((name, box), None)
            problem = "missing" if stored is None else stored.problem(dtype, tuple(shape))
            if problem:
                raise _wrong(
                    where,
                    f"tensor {name!r}",
                    problem,
                    f"{dtype} of shape {list(shape)}, by its codec",
                )
    if found:
        raise _wrong(where, "tensors", next(iter(found))[0], "a field of some parameter")


def _check_aliases(manifest: Manifest, where: str) -> None:
    names = [entry.name for entry in manifest.tensors_of("model")]
    stored = set(names)
    if len(stored) != len(names):
        raise _wrong(where, "tensors", "a model tensor", "there once")
    for alias, name in manifest.aliases.items():
        if name not in stored or alias in stored:
            raise _wrong(where, f"aliases.{alias}", name, "the name of a stored model tensor")


def _check_extra(manifest: Manifest, where: str) -> None:
    named = list(tensor_names(manifest.extra))
    if not all(isinstance(name, str) for name in named):
        raise _wrong(where, "extra", "a tensor", "named by a string")
    stored = [entry.name for entry in manifest.tensors_of("extra")]
    if len(set(named)) != len(named) or sorted(stored) != sorted(named):
        raise _wrong(where, "extra", named[:3], f"values with the tensors {stored[:3]}")
