"""Opening and loading: nothing is changed before everything that will be read is checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

from torch import Tensor, nn, optim

from luma_core.checkpoint.consistency import state_fields, tensor_name
from luma_core.checkpoint.extra import restore_extra
from luma_core.checkpoint.folder import read_manifest
from luma_core.checkpoint.manifest import FileEntry, FileKind, Manifest, ParameterEntry, TensorEntry
from luma_core.checkpoint.model import check_model, check_names, load_model
from luma_core.checkpoint.names import MANIFEST_NAME
from luma_core.checkpoint.shard import ShardReader
from luma_core.checkpoint.store import Store, open_store, storage_errors
from luma_core.codecs import codec_from_dict
from luma_core.errors import ConfigurationError, CorruptCheckpointError, StateMismatchError
from luma_core.state import GroupOptions, ParameterState, StateSource

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_HASH_BYTES = 4 << 20


def counted(total_bytes: int, progress: Progress | None) -> Callable[[int], None]:
    """Return what adds up the bytes it is told of and tells ``progress``."""
    done_bytes = 0

    def tick(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        if progress is not None:
            progress(done_bytes, total_bytes)

    return tick


class LoadableState(StateSource, Protocol):
    """An optimizer that state can be loaded into."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        ...

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        ...

    def load_parameter_states(
        self, groups: Sequence[GroupOptions], states: list[ParameterState]
    ) -> None:
        """Replace the state."""
        ...


class LazyFields(Mapping[str, Tensor]):
    """A parameter's stored tensors, read when they are asked for.

    Args:
        keys: the fields' names.
        read: reads one.
        keep: whether tensors stay in memory once read.
    """

    def __init__(self, keys: Sequence[str], read: Callable[[str], Tensor], *, keep: bool) -> None:
        self._keys = dict.fromkeys(keys)
        self._read = read
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if self._kept is None:
            return self._read(key)
        if key not in self._kept:
            self._kept[key] = self._read(key)
        return self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Checkpoint:
    """A checkpoint opened for reading: a state source that reads each tensor when it is used.

    Chunk checksums are checked on every read; `verify` also checks whole files.

    Attributes:
        url: the folder.
        manifest: what it holds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        with storage_errors(store.url):
            self.manifest = read_manifest(store)
        self._readers: dict[str, ShardReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._readers.clear()

    @property
    def algorithm(self) -> str:
        """Name of the optimizer's algorithm."""
        return self.manifest.algorithm

    @property
    def named(self) -> bool:
        """Whether parameters have names of their own."""
        return self.manifest.named

    def parameter_names(self) -> list[str]:
        """Return the names of all parameters, group by group."""
        return [entry.name for entry in self.manifest.parameters]

    def group_options(self) -> list[GroupOptions]:
        """Return the options of each parameter group."""
        return [deepcopy(group) for group in self.manifest.groups]

    def parameter_state(self, name: str) -> ParameterState:
        """Return the state of one parameter; its fields are read when they are first used.

        Raises:
            KeyError: no parameter has that name.
        """
        return self._state(self._parameters[name], keep=True)

    def states(self) -> list[ParameterState]:
        """Return the state of every parameter; each use of a field reads it anew."""
        return [self._state(entry, keep=False) for entry in self.manifest.parameters]

    def extra(self) -> Any:
        """Return the values that were saved as ``extra``; None where there were none."""
        entries = {entry.name: entry for entry in self.manifest.tensors_of("extra")}
        return restore_extra(self.manifest.extra, lambda name: self.read_tensor(entries[name]))

    def model_tensors(self) -> list[TensorEntry]:
        """Return the entries of the stored model weights, for `read_tensor`."""
        return list(self.manifest.tensors_of("model"))

    def read_tensor(self, entry: TensorEntry) -> Tensor:
        """Return one stored tensor on the CPU.

        Raises:
            CorruptCheckpointError: its shard is missing or not what was written.
            StorageError: the store failed.
        """
        with storage_errors(f"{self.url}/{entry.file}"):
            return self._reader(entry.file).read(entry)

    @cached_property
    def _parameters(self) -> dict[str, ParameterEntry]:
        return {entry.name: entry for entry in self.manifest.parameters}

    @cached_property
    def _fields(self) -> dict[str, TensorEntry]:
        return {entry.name: entry for entry in self.manifest.tensors_of("optimizer")}

    @cached_property
    def _shards(self) -> dict[str, tuple[FileEntry, list[TensorEntry]]]:
        shards: dict[str, tuple[FileEntry, list[TensorEntry]]] = {
            file.name: (file, []) for file in self.manifest.files_of("optimizer", "model", "extra")
        }
        for entry in self.manifest.tensors:
            shards[entry.file][1].append(entry)
        return shards

    def _reader(self, file: str) -> ShardReader:
        if file not in self._readers:
            entry, tensors = self._shards[file]
            self._readers[file] = ShardReader(
                self._store,
                entry,
                tensors,
                chunk_bytes=self.manifest.chunk_bytes,
                generation=self.manifest.generation,
            )
        return self._readers[file]

    def _state(self, entry: ParameterEntry, *, keep: bool) -> ParameterState:
        keys = [key for key, _, _ in state_fields(entry)]

        def read(key: str) -> Tensor:
            return self.read_tensor(self._fields[tensor_name(entry.name, key)])

        return ParameterState(
            name=entry.name,
            shape=entry.shape,
            dtype=entry.dtype,
            group=entry.group,
            step=entry.step,
            noise_key=entry.noise_key,
            nonfinite=entry.nonfinite,
            codecs={moment: codec_from_dict(config) for moment, config in entry.codecs.items()},
            fields=LazyFields(keys, read, keep=keep),
        )

    def check_files(self, *kinds: FileKind, progress: Progress | None = None) -> None:
        """Check size, SHA-256 and header of the files of some kinds.

        Raises:
            CorruptCheckpointError: the first file that is missing or not what was written.
        """
        files = list(self.manifest.files_of(*kinds))
        tick = counted(sum(file.bytes for file in files), progress)
        tick(0)
        for file in files:
            problem = self.file_problem(file, tick)
            if problem is not None and not (file.kind == "index" and problem is MISSING):
                raise CorruptCheckpointError(
                    f"{self.url}/{file.name}: {problem}.",
                    hint="Restore the file from a copy, or load an older checkpoint.",
                )

    def file_problem(self, file: FileEntry, tick: Callable[[int], None]) -> str | None:
        """Return what is wrong with a file, `MISSING` where it is not there, or None."""
        with storage_errors(f"{self.url}/{file.name}"):
            size = self._store.size(file.name)
            if size is None:
                return MISSING
            if size != file.bytes:
                return f"the file has {size} bytes, expected {file.bytes}"
            digest = hashlib.sha256()
            for start in range(0, size, _HASH_BYTES):
                piece = self._store.read_range(file.name, start, min(size, start + _HASH_BYTES))
                digest.update(piece)
                tick(len(piece))
            if digest.hexdigest() != file.sha256:
                return f"the file's SHA-256 is {digest.hexdigest()}, expected {file.sha256}"
        if file.kind != "index":
            try:
                self._reader(file.name)
            except CorruptCheckpointError as error:
                return error.message.removeprefix(f"{self.url}/{file.name}: ").rstrip(".")
        return None


MISSING = "the file is missing"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load` returns.

    Attributes:
        manifest: what the checkpoint holds.
        extra: the values that were saved as ``extra``; None where there were none.
    """

    manifest: Manifest
    extra: Any


def open(url: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint for reading; only its manifest is read at once.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest cannot be trusted.
        UnsupportedVersionError: a newer version wrote it.
        StorageError: the store failed.
    """
    return Checkpoint(open_store(url))


def exists(url: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint, whole or damaged."""
    store = open_store(url)
    with storage_errors(store.url):
        return store.size(MANIFEST_NAME) is not None


def load(
    url: str | os.PathLike[str],
    *,
    optimizer: LoadableState | None = None,
    model: nn.Module | None = None,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint into an optimizer, a model, or both.

    Names, shapes and every checksum of the files concerned are checked before anything is changed.

    Args:
        url: folder of the checkpoint.
        optimizer: receives the state, matched by name, or by position where either side has no
            names.
        model: receives the weights.
        progress: called with checked bytes done and in total.

    Raises:
        ConfigurationError: the optimizer is not one of LUMA.
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: a file is missing, cut or altered.
        UnsupportedVersionError: a newer version wrote it.
        StateMismatchError: it does not fit the optimizer or the model; says where.
        StorageError: the store failed.
    """
    if optimizer is not None:
        check_optimizer(optimizer, hint="Convert the checkpoint with `luma convert` --to adamw.")
    checkpoint = open(url)
    kinds: list[FileKind] = ["extra"]
    states: list[ParameterState] = []
    entries: dict[str, TensorEntry] = {}
    if optimizer is not None:
        kinds.append("optimizer")
        states = _matched_states(checkpoint, optimizer)
    if model is not None:
        kinds += ["model", "index"]
        entries = check_model(checkpoint.manifest, model)
    checkpoint.check_files(*kinds, progress=progress)
    extra = checkpoint.extra()
    if optimizer is not None:
        optimizer.load_parameter_states(checkpoint.group_options(), states)
    if model is not None:
        load_model(model, entries, checkpoint.read_tensor)
    return LoadedCheckpoint(checkpoint.manifest, extra)


def check_optimizer(optimizer: object, *, hint: str) -> None:
    """Refuse an optimizer of another kind by name.

    Raises:
        ConfigurationError: it is one of PyTorch's or another library's.
    """
    if isinstance(optimizer, optim.Optimizer) and not hasattr(optimizer, "parameter_state"):
        kind = type(optimizer)
        name = f"{kind.__module__.partition('.')[0]} {kind.__name__}"
        raise ConfigurationError(f"optimizer is a {name}; it must be a LUMA optimizer.", hint=hint)


def _matched_states(checkpoint: Checkpoint, optimizer: LoadableState) -> list[ParameterState]:
    """Return the checkpoint's states, known to fit the optimizer's names and shapes."""
    if optimizer.algorithm != checkpoint.algorithm:
        raise StateMismatchError(
            f"{checkpoint.url}: state of {checkpoint.algorithm!r} cannot be loaded into "
            f"{optimizer.algorithm!r}."
        )
    states = checkpoint.states()
    names = list(optimizer.parameter_names())
    if optimizer.named and checkpoint.named:
        check_names("parameters", names, [state.name for state in states])
        by_name = {state.name: state for state in states}
        pairs = [(name, by_name[name]) for name in names]
    else:
        if len(names) != len(states):
            raise StateMismatchError(
                f"{checkpoint.url}: state of {len(states)} parameters; the optimizer has "
                f"{len(names)}.",
                hint="Build the optimizer over the same model as when the state was saved.",
            )
        pairs = list(zip(names, states, strict=True))
    for name, state in pairs:
        expected = optimizer.parameter_state(name).shape
        if tuple(expected) != state.shape:
            raise StateMismatchError(
                f"{name!r}: the checkpoint has shape {list(state.shape)}; "
                f"the optimizer's parameter has {list(expected)}."
            )
    return states
