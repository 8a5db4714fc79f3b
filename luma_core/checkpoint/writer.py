"""Saving: shards first, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from luma_core._version import __version__
from luma_core.checkpoint.compression import CHUNK_BYTES, COMPRESSIONS, Compression
from luma_core.checkpoint.consistency import check_consistency, tensor_name
from luma_core.checkpoint.dtypes import tensor_bytes
from luma_core.checkpoint.extra import flatten_extra
from luma_core.checkpoint.folder import CheckpointFolder
from luma_core.checkpoint.manifest import (
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
)
from luma_core.checkpoint.model import index_bytes, model_tensors
from luma_core.checkpoint.names import INDEX_NAME, MANIFEST_NAME, ShardKind, shard_name
from luma_core.checkpoint.reader import check_optimizer
from luma_core.checkpoint.shard import PlannedTensor, ShardWriter, plan_shards
from luma_core.checkpoint.store import open_store, storage_errors
from luma_core.errors import ConfigurationError
from luma_core.state import (
    SCALAR_STATE_BYTES,
    GroupOptions,
    ParameterState,
    StateSource,
    field_key,
)

_log = logging.getLogger("luma")

MAX_SHARD_BYTES = 512 << 20
"""Default bound on the uncompressed size of a shard."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


class SavableState(StateSource, Protocol):
    """A state source that says what it is: an optimizer, an opened checkpoint, a conversion."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        ...

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        ...


def save(
    url: str | os.PathLike[str],
    *,
    optimizer: SavableState,
    model: nn.Module | None = None,
    extra: Any = None,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a checkpoint and return its manifest.

    The folder holds either the checkpoint that was there before or the new one, whole, whenever the
    process is killed or the machine stops. Memory is bounded by chunks and one parameter, not by
    the checkpoint. Only one process may save to a folder at a time.

    Args:
        url: folder, as a path or ``file://`` URL; created where it is missing.
        optimizer: whose state is saved; also takes an opened checkpoint.
        model: whose weights are saved as well, uncompressed, in the Hub's layout.
        extra: JSON values and tensors, nested in dicts and lists (tuples come back as lists).
        compression: ``"zstd"`` or ``"none"``, for optimizer state and extra tensors.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard; a larger tensor has a shard of its own.
        progress: called with uncompressed bytes done and in total.

    Raises:
        ConfigurationError: an option, the model or ``extra`` holds something that cannot be saved.
        CheckpointExistsError: there is a checkpoint and ``overwrite`` is False.
        StorageError: the store failed, for example a full disk. Nearly always the folder then holds
            the previous checkpoint. It holds the new one if its manifest was in place already, and
            making that durable or writing the index of the model shards failed. Either is whole,
            but its index may be missing, which is derived. Old files that cannot be removed after
            all that are no error but a warning in the log; the next save removes them.
    """
    _check_options(compression, max_shard_bytes)
    store = open_store(url)
    check_optimizer(optimizer, hint="Save it with torch.save, or convert it with luma convert.")
    plan = _plan(optimizer, model, extra, max_shard_bytes)
    with storage_errors(store.url):
        folder = CheckpointFolder(store, overwrite=overwrite, with_model="model" in plan.shards)
        return _Save(folder, plan, compression, progress).run()


def _check_options(compression: str, max_shard_bytes: int) -> None:
    if compression not in COMPRESSIONS:
        raise ConfigurationError(
            f"compression={compression!r} must be one of {', '.join(map(repr, COMPRESSIONS))}."
        )
    if isinstance(max_shard_bytes, bool) or not (
        isinstance(max_shard_bytes, int) and max_shard_bytes > 0
    ):
        raise ConfigurationError(f"max_shard_bytes={max_shard_bytes!r} must be a positive integer.")


@dataclass(frozen=True)
class _Plan:
    """What will be written; tensors are fetched when their turn comes."""

    algorithm: str
    named: bool
    groups: tuple[GroupOptions, ...]
    parameters: tuple[ParameterEntry, ...]
    extra: Any
    aliases: Mapping[str, str]
    shards: Mapping[ShardKind, list[list[PlannedTensor]]]

    @property
    def total_bytes(self) -> int:
        return sum(
            tensor.nbytes for shards in self.shards.values() for shard in shards for tensor in shard
        )


def _plan(
    optimizer: SavableState, model: nn.Module | None, extra: Any, max_shard_bytes: int
) -> _Plan:
    names = list(optimizer.parameter_names())
    repeated = (
        {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    )
    if repeated:
        raise ConfigurationError(f"the parameter name {min(repeated)!r} is used more than once.")
    last = _LastState(optimizer)
    parameters = []
    tensors: dict[ShardKind, list[PlannedTensor]] = {"optimizer": []}
    for name in names:
        state = optimizer.parameter_state(name)
        parameters.append(_entry(state))
        tensors["optimizer"].extend(_planned_fields(state, last))
    weights, aliases = model_tensors(model) if model is not None else ({}, {})
    tensors["model"] = [_planned(name, tensor) for name, tensor in weights.items()]
    tree, extra_tensors = flatten_extra(extra)
    tensors["extra"] = [_planned(name, tensor) for name, tensor in extra_tensors.items()]
    return _Plan(
        algorithm=optimizer.algorithm,
        named=optimizer.named,
        groups=tuple(_plain_options(i, group) for i, group in enumerate(optimizer.group_options())),
        parameters=tuple(parameters),
        extra=tree,
        aliases=aliases,
        shards={kind: plan_shards(some, max_shard_bytes) for kind, some in tensors.items() if some},
    )


def _plain_options(index: int, group: GroupOptions) -> GroupOptions:
    try:
        return cast(GroupOptions, json.loads(json.dumps(group, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the options of parameter group {index} are not plain JSON values: {error}."
        ) from error


def _entry(state: ParameterState) -> ParameterEntry:
    return ParameterEntry(
        name=state.name,
        shape=tuple(state.shape),
        dtype=state.dtype,
        group=state.group,
        step=state.step,
        noise_key=state.noise_key,
        nonfinite=state.nonfinite,
        codecs={moment: codec.to_dict() for moment, codec in state.codecs.items()},
    )


class _LastState:
    """Asks a source for each parameter once while its fields are written one after another."""

    def __init__(self, source: StateSource) -> None:
        self._source = source
        self._state: ParameterState | None = None

    def field(self, name: str, key: str) -> Tensor:
        if self._state is None or self._state.name != name:
            self._state = self._source.parameter_state(name)
        return self._state.fields[key]


def _planned_fields(state: ParameterState, last: _LastState) -> Iterator[PlannedTensor]:
    for moment, codec in state.codecs.items():
        for field, spec in codec.layout(state.shape).items():
            key = field_key(moment, field)
            yield PlannedTensor(
                tensor_name(state.name, key),
                spec.dtype,
                tuple(spec.shape),
                lambda name=state.name, key=key: last.field(name, key),  # type: ignore[misc]
            )


def _planned(name: str, tensor: Tensor) -> PlannedTensor:
    return PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


class _Save:
    """One save into one folder."""

    def __init__(
        self,
        folder: CheckpointFolder,
        plan: _Plan,
        compression: Compression,
        progress: Progress | None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._compression = compression
        self._progress = progress
        self._begun: list[str] = []
        self._done_bytes = 0
        self._total_bytes = plan.total_bytes

    def run(self) -> Manifest:
        files: list[FileEntry] = []
        tensors: list[TensorEntry] = []
        manifest: Manifest | None = None
        self._folder.clean()
        try:
            self._tick(0)
            for kind, shards in self._plan.shards.items():
                self._write_shards(kind, shards, files, tensors)
            index = index_bytes([t for t in tensors if t.file.startswith("model-")])
            if "model" in self._plan.shards:
                digest = hashlib.sha256(index).hexdigest()
                files.append(FileEntry(INDEX_NAME, len(index), digest, "index"))
            manifest = self._manifest(files, tensors)
            self._folder.commit(manifest)
        except BaseException:
            if manifest is None or not self._folder.holds(manifest):
                self._withdraw()
            raise
        if "model" in self._plan.shards:
            self._folder.put(INDEX_NAME, index)
        self._retire(manifest)
        return manifest

    def _retire(self, manifest: Manifest) -> None:
        try:
            self._folder.retire(manifest)
        except OSError as error:
            _log.warning("saved, but files of the previous checkpoint are left: %s", error)

    def _withdraw(self) -> None:
        for name in self._begun:
            with contextlib.suppress(OSError):
                self._folder.store.delete(name)

    def _tick(self, raw_bytes: int) -> None:
        self._done_bytes += raw_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _write_shards(
        self,
        kind: ShardKind,
        shards: Sequence[Sequence[PlannedTensor]],
        files: list[FileEntry],
        tensors: list[TensorEntry],
    ) -> None:
        writer = ShardWriter(
            self._folder.store,
            compression="none" if kind == "model" else self._compression,
            chunk_bytes=CHUNK_BYTES,
            generation=self._folder.generation,
            tick=self._tick,
        )
        for index, shard in enumerate(shards, start=1):
            name = shard_name(kind, self._folder.generation, index, len(shards))
            self._begun.append(name)
            file, entries = writer.write(name, kind, shard)
            files.append(file)
            tensors.extend(entries)

    def _manifest(self, files: Sequence[FileEntry], tensors: Sequence[TensorEntry]) -> Manifest:
        plan = self._plan
        manifest = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"luma-state {__version__}",
            algorithm=plan.algorithm,
            named=plan.named,
            compression=self._compression,
            chunk_bytes=CHUNK_BYTES,
            groups=plan.groups,
            parameters=plan.parameters,
            tensors=tuple(tensors),
            files=tuple(files),
            summary=self._summary(files),
            generation=self._folder.generation,
            extra=plan.extra,
            aliases=dict(plan.aliases),
        )
        check_consistency(manifest, MANIFEST_NAME)
        return manifest

    def _summary(self, files: Sequence[FileEntry]) -> Summary:
        parameters = self._plan.parameters
        return Summary(
            parameters=len(parameters),
            elements=sum(tensor_bytes(torch.uint8, entry.shape) for entry in parameters),
            state_bytes=self._state_bytes(),
            stored_bytes=sum(file.bytes for file in files if file.kind == "optimizer"),
            step=max((entry.step for entry in parameters), default=0),
        )

    def _state_bytes(self) -> int:
        shards = self._plan.shards.get("optimizer", [])
        with_state = sum(bool(entry.codecs) for entry in self._plan.parameters)
        fields = sum(tensor.nbytes for shard in shards for tensor in shard)
        return fields + SCALAR_STATE_BYTES * with_state
