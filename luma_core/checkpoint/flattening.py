"""Turns a checkpoint of a delta chain into a full one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from luma_core.checkpoint.format.compression import Compression
from luma_core.checkpoint.format.consistency import tensor_name
from luma_core.checkpoint.format.dtypes import torch_dtype
from luma_core.checkpoint.format.manifest import Manifest, TensorEntry
from luma_core.checkpoint.format.plan import Plan
from luma_core.checkpoint.format.shard import PlannedTensor, plan_shards
from luma_core.checkpoint.format.stored_tensors import boxes_of_moments
from luma_core.checkpoint.read.files import Progress
from luma_core.checkpoint.read.opening import open
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.staging import async_executor
from luma_core.checkpoint.storage.budget import MAX_MEMORY_BYTES
from luma_core.checkpoint.storage.names import ShardKind
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.storage.store import Place
from luma_core.checkpoint.write.coordination import Ranks
from luma_core.checkpoint.write.options import MAX_SHARD_BYTES, SaveOptions
from luma_core.checkpoint.write.save_run import SaveRun
from luma_core.state import field_key


def flatten(
    source: Place,
    destination: Place,
    *,
    compression: Compression = "zstd",
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a full checkpoint with what another holds, and return its manifest.

    Every tensor, counter, option and extra value is the same bit for bit, but for moments that are
    stored in parts, which are coded anew, by rounding to nearest. What is read of the
    source and of those that it builds on is checked by CRC-32. The source stays.

    Args:
        source: folder of any checkpoint, full ones too.
        destination: folder of the new one. With ``overwrite``, the source's own folder will do,
            but checkpoints that build on it can then be read no more.
        compression: as `save` takes it, like the options that follow.
        overwrite: whether to replace a checkpoint that is there.
        max_shard_bytes: uncompressed bound on a shard.
        max_memory_bytes: bound on what is held beside one tensor for each shard in flight.
        progress: called with uncompressed bytes done and in total.

    Raises:
        ConfigurationError: an option has a value that cannot work.
        CheckpointNotFoundError: there is no checkpoint at ``source``.
        CheckpointExistsError: there is one at ``destination`` and ``overwrite`` is False.
        BrokenChainError: one that the source builds on is missing, or changed.
        CorruptCheckpointError: a file is missing, cut or altered.
        ConcurrentSaveError: another saver is at work at ``destination``.
        StorageError: a store failed.
    """
    options = SaveOptions(
        compression=compression,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
        max_memory_bytes=max_memory_bytes,
        progress=progress,
    )
    store = open_store(destination)
    async_executor.before_save(wait=True)
    opened = open(source, max_memory_bytes=max_memory_bytes)
    opened.chain()
    return SaveRun(store, _plan(opened, max_shard_bytes), Ranks(None), options).run()


def _plan(opened: Checkpoint, max_shard_bytes: int) -> Plan:
    manifest = opened.manifest
    tensors: dict[ShardKind, list[PlannedTensor]] = {
        "optimizer": _planned_state(opened),
        "model": [_planned(opened, entry) for entry in manifest.tensors_of("model")],
        "extra": [_planned(opened, entry) for entry in manifest.tensors_of("extra")],
    }
    return Plan(
        algorithm=manifest.algorithm,
        named=manifest.named,
        groups=manifest.groups,
        parameters=manifest.parameters,
        extra=manifest.extra,
        aliases=manifest.aliases,
        shards={kind: plan_shards(some, max_shard_bytes) for kind, some in tensors.items() if some},
    )


def _planned_state(opened: Checkpoint) -> list[PlannedTensor]:
    state = list(opened.manifest.tensors_of("optimizer"))
    whole = {entry.name: _dtype(entry) for entry in state if entry.box is None}
    planned = [
        PlannedTensor(name, dtype, opened.stored_shape(name), partial(_read, opened, name, dtype))
        for name, dtype in whole.items()
    ]
    for parameter, moment in boxes_of_moments(state):
        found = opened.parameter_state(parameter)
        for name, spec in found.codecs[moment].layout(found.shape).items():
            load = partial(opened.read, parameter, moment, field=name)
            stored = tensor_name(parameter, field_key(moment, name))
            planned.append(PlannedTensor(stored, spec.dtype, spec.shape, load))
    return planned


def _read(opened: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(opened.stored_shape(name), dtype=dtype, device="cpu")
    opened.read_stored(name, 0, tensor.reshape(-1).view(torch.uint8).numpy())
    return tensor


def _planned(opened: Checkpoint, entry: TensorEntry) -> PlannedTensor:
    load = partial(opened.read_tensor, entry)
    return PlannedTensor(entry.name, _dtype(entry), entry.shape, load)


def _dtype(entry: TensorEntry) -> torch.dtype:
    dtype = torch_dtype(entry.dtype)
    assert dtype is not None
    return dtype
