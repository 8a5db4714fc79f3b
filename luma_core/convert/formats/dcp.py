"""Folders of ``torch.distributed.checkpoint``, read and written without a process group."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS, ConvertOptions, Progress, Source, Url, Written
from luma_core.convert.flat import is_flat, unflattened
from luma_core.convert.formats.dcp_metadata import METADATA_NAME, read_metadata
from luma_core.convert.names import namer_of
from luma_core.convert.places import Folder, folder_at
from luma_core.convert.state_dict import Entry, StateDictSource, moments_entry
from luma_core.convert.targets import write_folder
from luma_core.convert.torch_file import load_torch_bytes
from luma_core.convert.writing import adamw_state_dict, require_names
from luma_core.errors import ConversionError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

FORMAT = "dcp"

_ROOT = "optim"
_GROUPS = "param_groups"

# What metadata raise, when used, whose fields hold something else than they should.
_MISSHAPEN = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError)


def is_dcp(url: Url) -> bool:
    """Whether it is a folder of ``torch.distributed.checkpoint``."""
    return folder_at(url).size(METADATA_NAME) is not None


def open_dcp(url: Url, model: Url | None = None) -> Source:
    """Open the state of the one optimizer in a folder, under whatever key it was saved.

    Moments may be sharded in any way; each is read and put together when it is asked for.

    Raises:
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no state of a single AdamW, or is damaged.
        StorageError: it cannot be read.
    """
    folder = folder_at(url)
    metadata = read_metadata(folder)
    try:
        files = _Files(folder, metadata)
        content = _nested(files)
    except _MISSHAPEN as error:
        raise ConversionError(
            f"{folder.where}: its metadata is damaged ({type(error).__name__})."
        ) from error
    if is_flat(content):
        content = unflattened(content)
    return StateDictSource(
        content,
        where=folder.where,
        stored_bytes=files.used_bytes,
        format=FORMAT,
        decoder=_decode,
        namer=namer_of(model),
    )


@dataclass(frozen=True)
class _Stored:
    """A tensor in the folder that is not read yet; ``head`` has its shape and dtype, no values."""

    files: _Files
    key: str
    head: Tensor

    def read(self) -> Tensor:
        return self.files.tensor(self.key)


class _Files:
    """The items of a folder by key."""

    def __init__(self, folder: Folder, metadata: Metadata) -> None:
        self.folder = folder
        self.where = folder.where
        self.metadata = metadata
        self.used_bytes = 0
        self._pieces: dict[str, list[tuple[tuple[int, ...] | None, Any]]] = {}
        for index, info in metadata.storage_data.items():
            offset = None if index.offset is None else tuple(index.offset)
            self._pieces.setdefault(index.fqn, []).append((offset, info))

    def item(self, key: str) -> Any:
        """Return a plain value, a tensor of one element, or what stands for a larger tensor."""
        self.used_bytes += sum(info.length for _, info in self._pieces.get(key, []))
        entry = self.metadata.state_dict_metadata[key]
        if not hasattr(entry, "chunks"):
            pieces = self._pieces.get(key, [])
            if len(pieces) != 1:
                raise ConversionError(f"{self.where}: {key!r} is not in any file.")
            return self._load(key, pieces[0][1])
        entry = cast("TensorStorageMetadata", entry)
        if math.prod(entry.size) == 1 and key.rpartition(".")[2] not in MOMENTS:
            return self.tensor(key)
        head = torch.empty((), dtype=entry.properties.dtype, device="cpu").expand(entry.size)
        return _Stored(self, key, head)

    def tensor(self, key: str) -> Tensor:
        """Return a whole tensor, put together from its pieces.

        Raises:
            ConversionError: a piece is missing or is not as described.
        """
        try:
            return self._tensor(key)
        except _MISSHAPEN as error:
            raise ConversionError(
                f"{self.where}: {key!r} is not as its metadata says ({type(error).__name__})."
            ) from error

    def _tensor(self, key: str) -> Tensor:
        entry = cast("TensorStorageMetadata", self.metadata.state_dict_metadata[key])
        sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
        pieces = {offset or (0,) * len(entry.size): info for offset, info in self._pieces[key]}
        covered = sum(map(math.prod, sizes.values()))
        if pieces.keys() != sizes.keys() or covered != math.prod(entry.size):
            raise ConversionError(f"{self.where}: {key!r} is not there in whole.")
        stored = sum(self._stored_bytes(info) for info in pieces.values())
        if math.prod(entry.size) * entry.properties.dtype.itemsize > stored:
            raise ConversionError(f"{self.where}: {key!r} is larger than what is stored of it.")
        whole = torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
        for offset, size in sizes.items():
            piece = self._load(key, pieces[offset])
            if not isinstance(piece, Tensor) or tuple(piece.shape) != size:
                raise ConversionError(f"{self.where}: {key!r} is not as its metadata says.")
            whole[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))] = piece
        return whole

    def _stored_bytes(self, info: Any) -> int:
        size = self.folder.file(info.relative_path).required_bytes()
        return min(int(info.length), size)

    def _load(self, key: str, info: Any) -> Any:
        file = self.folder.file(info.relative_path)
        if getattr(info, "transform_descriptors", None):
            raise ConversionError(
                f"{self.where}: {key!r} is transformed ({info.transform_descriptors}).",
                hint="Only folders written without stream extensions can be read.",
            )
        size = file.required_bytes()
        if not 0 <= info.offset <= info.offset + info.length <= size:
            raise ConversionError(f"{self.where}: {key!r} is not in {file.name}, or damaged.")
        content = file.read(info.offset, info.offset + info.length)
        return load_torch_bytes(content, f"{self.where}: {key!r} in {file.name}")


def _nested(files: _Files) -> dict[str, Any]:
    """Return the optimizer's state dict, with `_Stored` for its moments."""
    paths = files.metadata.planner_data
    if not isinstance(paths, Mapping):
        raise ConversionError(
            f"{files.where}: its metadata does not tell how its keys are nested.",
            hint="Save it with the default planner of torch.distributed.checkpoint.",
        )
    roots = {
        path[:i]
        for path in paths.values()
        for i, part in enumerate(path)
        if part == _GROUPS or (isinstance(part, str) and part.startswith(f"{_GROUPS}."))
    }
    if len(roots) != 1:
        raise ConversionError(
            f"{files.where}: the state of {len(roots)} optimizers is in it; it must be one."
        )
    root = roots.pop()
    content: dict[str, Any] = {}
    groups: dict[Any, Any] = {}
    for key, path in paths.items():
        rest = path[len(root) :]
        if path[: len(root)] != root or key not in files.metadata.state_dict_metadata:
            continue
        if len(rest) == 1 and isinstance(rest[0], str):
            content[rest[0]] = files.item(key)
        elif len(rest) == 3 and rest[0] == "state":
            content.setdefault("state", {}).setdefault(rest[1], {})[rest[2]] = files.item(key)
        elif len(rest) >= 3 and rest[0] == _GROUPS:
            place = groups
            for part in rest[1:-1]:
                place = place.setdefault(part, {})
            place[rest[-1]] = files.item(key)
    if groups:
        content[_GROUPS] = _with_lists(groups)
        content.setdefault("state", {})
    return content


def _with_lists(value: Any) -> Any:
    """Return nested values with lists where paths have indices; keys of dicts are strings there."""
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(key, int) for key in value):
        return [_with_lists(value[index]) for index in sorted(value)]
    return {key: _with_lists(child) for key, child in value.items()}


def _decode(place: str, entry: Any) -> Entry | None:
    if set(entry) != {"step", *MOMENTS}:
        return None
    moments = [entry[moment] for moment in MOMENTS]
    if not all(isinstance(value, _Stored) for value in moments):
        return None
    return moments_entry(
        place,
        entry["step"],
        [value.head for value in moments],
        lambda: (moments[0].read().float(), moments[1].read().float()),
    )


def write_dcp(
    source: Source, destination: Url, options: ConvertOptions, progress: Progress | None, /
) -> Written:
    """Write a folder whose key ``optim`` is what ``get_optimizer_state_dict`` returns.

    The folder appears as a whole, when all of it is written.

    Raises:
        CheckpointExistsError: something is there and may not be replaced.
        ConversionError: the parameters have no names.
        StorageError: the store failed.
    """
    require_names(source, FORMAT)

    def fill(folder: Path, scratch: IO[bytes]) -> None:
        state = adamw_state_dict(source, scratch, progress, by_name=True)
        _save({_ROOT: state}, folder)

    return write_folder(destination, options, fill, own=_is_own, last=METADATA_NAME)


def _is_own(name: str) -> bool:
    return name == METADATA_NAME or name.endswith(".distcp")


def _save(state_dict: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        # It tells that there is no process group, which is meant.
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        try:
            save(state_dict, storage_writer=FileSystemWriter(folder), no_dist=True)
        except CheckpointException as error:
            # What a process ran into, a full disk for example, is inside.
            raise next(iter(error.failures.values()))[0] from error
