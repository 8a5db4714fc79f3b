"""A checkpoint that is read: its manifest first, tensors when they are used."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

from luma_core.checkpoint.format.compression import Delta
from luma_core.checkpoint.format.consistency import state_fields, tensor_name
from luma_core.checkpoint.format.dtypes import torch_dtype
from luma_core.checkpoint.format.extra import restore_extra
from luma_core.checkpoint.format.folder import read_manifest, reading
from luma_core.checkpoint.format.group_options import restored_options
from luma_core.checkpoint.format.lazy_fields import LazyFields
from luma_core.checkpoint.format.manifest import (
    Box,
    FileEntry,
    FileKind,
    Manifest,
    ParameterEntry,
    TensorEntry,
    TensorPlace,
)
from luma_core.checkpoint.format.rows import boxes_of_rows, field_rows, moment_rows, row_range
from luma_core.checkpoint.format.stored_tensors import (
    StoredName,
    StoredTensor,
    box_shape,
    boxes_of_moments,
    stored_tensors,
)
from luma_core.checkpoint.read.checkpoint_files import CheckpointFiles
from luma_core.checkpoint.read.delta_chain import base_manifest, check_counterparts
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.parted_fields import ReadStored, RecodedFields
from luma_core.checkpoint.read.shard_stream import Room, Target
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES, Budget
from luma_core.checkpoint.storage.names import MANIFEST_NAME
from luma_core.checkpoint.storage.store import Store, storage_errors
from luma_core.codecs import Fields, codec_from_dict
from luma_core.direct import Bytes
from luma_core.lazy import import_later
from luma_core.state import GroupOptions, ParameterState, field_key

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())


class Checkpoint:
    """A checkpoint opened for reading: a state source that reads each tensor when it is used.

    Chunk checksums are checked on every read; `verify` also checks whole files. Where the
    checkpoint was replaced or removed since it was opened, reading what is gone raises
    `CheckpointReplacedError`.

    Attributes:
        url: the folder.
        store: its store.
        manifest: what it holds.
    """

    def __init__(
        self, store: Store, *, budget: Budget | None = None, manifest: Manifest | None = None
    ) -> None:
        self.store = store
        self._budget = budget or Budget.of(MAX_MEMORY_BYTES)
        self.url = store.url
        with storage_errors(store.url):
            self.manifest = manifest or read_manifest(store)
        self._base: Checkpoint | None = None
        self._base_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        vars(self).pop("_files", None)
        self._base = None

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
        where = f"{self.url}/{MANIFEST_NAME}: groups"
        return [restored_options(group, where) for group in self.manifest.groups]

    def parameter_state(self, name: str) -> ParameterState:
        """Return the state of one parameter; its fields are read when they are first used.

        Raises:
            KeyError: no parameter has that name.
        """
        return self._state(self._parameters[name], keep=True)

    def states(self, read: ReadStored | None = None) -> list[ParameterState]:
        """Return the state of every parameter; each use of a field reads it anew.

        Args:
            read: returns a stored tensor by name, and by box where it is a field of a part, that
                is nobody else's; from the store by default.
        """
        return [self._state(entry, keep=False, read=read) for entry in self.manifest.parameters]

    def extra(self) -> Any:
        """Return the values that were saved as ``extra``; None where there were none."""
        entries = {entry.name: entry for entry in self.manifest.tensors_of("extra")}
        where = f"{self.url}/{MANIFEST_NAME}: extra"
        return restore_extra(
            self.manifest.extra, lambda name: self.read_tensor(entries[name]), where
        )

    def model_tensors(self) -> list[TensorEntry]:
        """Return the entries of the stored model weights, for `read_tensor`."""
        return list(self.manifest.tensors_of("model"))

    def read(
        self,
        parameter: str,
        moment: str,
        *,
        field: str | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Return a moment of one parameter, or some rows of it, as float32 on the CPU.

        Only the chunks that hold those rows are read.

        Args:
            parameter: its name.
            moment: ``"exp_avg"`` or ``"exp_avg_sq"``.
            field: returns this stored field as it is (``"codes"``, ``"exponent"``, ``"value"``)
                instead of the decoded moment.
            rows: indices of dimension 0 of what is returned, in steps of one; all by default.

        Raises:
            KeyError: there is no such parameter, moment or field.
            ConfigurationError: ``rows`` has steps, or there is no dimension 0.
            CorruptCheckpointError: a shard is missing or not what was written.
            StorageError: the store failed.
        """
        entry = self._parameters[parameter]
        codec = codec_from_dict(entry.codecs[moment])
        boxes = self.boxes(parameter, moment)

        def elements(box: Box | None, key: str, start: int, stop: int) -> Tensor:
            name = tensor_name(parameter, field_key(moment, key))
            return self._elements((name, box), start, stop)

        if boxes and field is not None:
            whole = self._state(entry, keep=False).fields[field_key(moment, field)]
            flat = whole.reshape(-1)
            return field_rows(whole.shape, rows, lambda start, stop: flat[start:stop])
        if field is not None:
            shape = codec.layout(entry.shape)[field].shape
            return field_rows(shape, rows, partial(elements, None, field))
        if not boxes:
            return moment_rows(codec, entry.shape, rows, partial(elements, None))
        count = len(row_range(entry.shape, rows))
        found = torch.empty((count, *entry.shape[1:]), device="cpu")
        for box, inside, place in boxes_of_rows(boxes, row_range(entry.shape, rows)):
            found[place] = moment_rows(codec, box_shape(box), inside, partial(elements, box))
        return found

    def boxes(self, parameter: str, moment: str) -> list[Box]:
        """Return the parts of a parameter in which a moment is stored; none where it is whole."""
        return self._boxes.get((parameter, moment), [])

    def read_part(self, parameter: str, moment: str, box: Box) -> Fields:
        """Return the stored fields of a part of a moment, by name, as they are.

        Args:
            parameter: its name.
            moment: one that is stored in parts.
            box: one of them.

        Raises:
            CorruptCheckpointError: a shard is missing or not what was written.
            StorageError: the store failed.
        """
        codec = codec_from_dict(self._parameters[parameter].codecs[moment])
        names = codec.layout(box_shape(box))
        return {
            name: self._stored_tensor(tensor_name(parameter, field_key(moment, name)), box)
            for name in names
        }

    def read_tensor(self, entry: TensorEntry, *, rows: slice | None = None) -> Tensor:
        """Return one stored tensor on the CPU, or its ``rows``, as `read` does.

        Raises:
            ConfigurationError: ``rows`` has steps, or there is no dimension 0.
            CorruptCheckpointError: its shard is missing or not what was written.
            StorageError: the store failed.
        """
        with reading(self.store, self.manifest, entry.file):
            reader = self._files.reader(entry.file)
            if rows is None:
                return reader.read(entry)
            return field_rows(entry.shape, rows, partial(reader.read_elements, entry))

    def base(self) -> Checkpoint | None:
        """Return the checkpoint that this one holds differences to; None where it is full.

        Raises:
            BrokenChainError: it is missing, or not the one that this one was made from.
            CorruptCheckpointError: it has other tensors than this one's manifest says.
            StorageError: the store failed.
        """
        entry = self.manifest.base
        with self._base_lock:
            if self._base is None and entry is not None:
                store = self.store.beside(entry.folder)
                with storage_errors(store.url):
                    manifest = base_manifest(store, entry, self.url)
                check_counterparts(self.manifest, manifest, self.url)
                self._base = Checkpoint(store, budget=self._budget, manifest=manifest)
            return self._base

    def chain(self) -> list[Checkpoint]:
        """Return the checkpoints that it takes to read this one: itself, its base, and so on.

        Raises:
            BrokenChainError: one is missing, or not the one that the other was made from.
            StorageError: the store failed.
        """
        found = [self]
        while (base := found[-1].base()) is not None:
            found.append(base)
        return found

    def read_stored(self, name: str, start: int, out: Bytes, box: Box | None = None) -> None:
        """Read elements of a stored tensor of the state.

        Args:
            name: of the tensor.
            start: the first element, in C order.
            out: 1-D bytes of as many elements as are wanted.
            box: of the part of the parameter, where the tensor is a field of one.

        Raises:
            KeyError: there is no such tensor.
            CorruptCheckpointError: its bytes are not those that were written.
            StorageError: the store failed.
        """
        stored = self._fields[name, box]
        dtype = torch_dtype(stored.entries[0].dtype)
        assert dtype is not None
        itemsize = dtype.itemsize
        for entry, first, last in stored.spans(start, start + out.nbytes // itemsize):
            with reading(self.store, self.manifest, entry.file):
                size = (last - first) * itemsize
                self._files.reader(entry.file).read_into(entry, first, out[:size])
                out = out[size:]

    def read_counterpart(
        self, place: TensorPlace, shape: Sequence[int], start: int, out: Bytes
    ) -> None:
        """Read elements of the stored tensor that another checkpoint's tensor is compared with.

        Args:
            place: of both.
            shape: of both.
            start: the first element, in C order, of this very piece or part.
            out: 1-D bytes of as many elements as are wanted.

        Raises:
            KeyError: there is no such tensor.
            CorruptCheckpointError: its bytes are not those that were written.
            StorageError: the store failed.
        """
        name, first_row, box = place
        self.read_stored(name, first_row * math.prod(shape[1:]) + start, out, box)

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor of the state, which may be in pieces."""
        return self._fields[name, None].shape

    def _elements(self, name: StoredName, start: int, stop: int) -> Tensor:
        found = []
        for entry, first, last in self._fields[name].spans(start, stop):
            with reading(self.store, self.manifest, entry.file):
                found.append(self._files.reader(entry.file).read_elements(entry, first, last))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _stored_tensor(self, name: str, box: Box | None = None) -> Tensor:
        shape = self._fields[name, box].shape
        return self._elements((name, box), 0, math.prod(shape)).view(shape)

    def _delta(self, entry: TensorEntry, place: int) -> Delta | None:
        """Return the delta base of a chunk; None where it is stored in full."""
        crc32 = entry.deltas[place] if entry.deltas else None
        base = self.base() if crc32 is not None else None
        if crc32 is None or base is None:
            return None
        dtype = torch_dtype(entry.dtype)
        assert dtype is not None
        start = place * (self.manifest.chunk_bytes // dtype.itemsize)
        return Delta(partial(base.read_counterpart, entry.place, entry.shape, start), crc32)

    @cached_property
    def _files(self) -> CheckpointFiles:
        return CheckpointFiles(
            self.store, self.manifest, lanes=self._budget.lanes, delta=self._delta
        )

    @cached_property
    def _parameters(self) -> dict[str, ParameterEntry]:
        return {entry.name: entry for entry in self.manifest.parameters}

    @cached_property
    def _fields(self) -> dict[StoredName, StoredTensor]:
        return stored_tensors(self.manifest.tensors_of("optimizer"))

    @cached_property
    def _boxes(self) -> dict[tuple[str, str], list[Box]]:
        return boxes_of_moments(self.manifest.tensors_of("optimizer"))

    def _state(
        self, entry: ParameterEntry, *, keep: bool, read: ReadStored | None = None
    ) -> ParameterState:
        keys = [key for key, *_ in state_fields(entry)]
        boxes = {moment: self.boxes(entry.name, moment) for moment in entry.codecs}
        stored = RecodedFields(entry, boxes, read or self._stored_tensor)
        return ParameterState(
            name=entry.name,
            shape=entry.shape,
            dtype=entry.dtype,
            group=entry.group,
            step=entry.step,
            noise_key=entry.noise_key,
            nonfinite=entry.nonfinite,
            codecs={moment: codec_from_dict(config) for moment, config in entry.codecs.items()},
            fields=LazyFields(keys, stored.read, keep=keep, fresh=True),
        )

    def read_checked(
        self,
        read: Sequence[FileKind],
        check: Sequence[FileKind],
        *,
        put: Callable[[TensorEntry, Tensor], None],
        room: Callable[[TensorEntry], Room | None] = lambda _: None,
        progress: Progress | None = None,
    ) -> None:
        """Check size, SHA-256 and header of the files of some kinds, and read those of others once.

        What is read is checked as well, but only when this returns: until then, what ``put``
        received may be wrong.

        Args:
            read: kinds of files whose tensors are wanted.
            check: kinds of files that are only checked, first.
            put: called with each tensor, on the CPU, by any thread.
            room: returns where a tensor's bytes go, by any thread; ``put`` gets the others.
            progress: called with bytes done and in total.

        Raises:
            CorruptCheckpointError: the first file that is missing or not what was written.
            CheckpointReplacedError: the checkpoint was replaced or removed since it was opened.
            StorageError: the store failed.
        """
        if "optimizer" in read:
            self.chain()
        self._files.read(read, check, target=Target(put, room), progress=progress)

    def file_problems(
        self, files: Sequence[FileEntry], tick: Callable[[int], None], *, again: bool = False
    ) -> Iterator[tuple[FileEntry, str | None]]:
        """Check files, several at once; yield each with what `content_problem` says of it."""
        return self._files.problems(files, tick, again=again)
