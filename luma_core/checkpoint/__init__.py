"""The on-disk format: safetensors shards, checksums, and a manifest that is written last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily
from luma_core.moved import give_moved_names

if TYPE_CHECKING:
    from luma_core.changes import before_change
    from luma_core.checkpoint.flattening import flatten
    from luma_core.checkpoint.format.compression import Compression
    from luma_core.checkpoint.format.manifest import Manifest, Summary
    from luma_core.checkpoint.format.plan import SavableState
    from luma_core.checkpoint.loading import load, load_sharded
    from luma_core.checkpoint.manager import CheckpointManager
    from luma_core.checkpoint.read.load import LoadedCheckpoint
    from luma_core.checkpoint.read.opening import exists, open
    from luma_core.checkpoint.read.reader import Checkpoint
    from luma_core.checkpoint.read.verify import Problem, VerifyReport, verify
    from luma_core.checkpoint.sharded_manager import ShardedCheckpointManager
    from luma_core.checkpoint.staging.async_executor import SaveHandle, wait_for_saves
    from luma_core.checkpoint.storage.open import open_store
    from luma_core.checkpoint.storage.store import Store
    from luma_core.checkpoint.write.options import MAX_SHARD_BYTES, SaveOptions
    from luma_core.checkpoint.write.prepare import prepare
    from luma_core.checkpoint.write.saver import async_save, save, save_sharded
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.changes": ["before_change"],
            "luma_core.checkpoint.flattening": ["flatten"],
            "luma_core.checkpoint.format.compression": ["Compression"],
            "luma_core.checkpoint.format.manifest": ["Manifest", "Summary"],
            "luma_core.checkpoint.format.plan": ["SavableState"],
            "luma_core.checkpoint.loading": ["load", "load_sharded"],
            "luma_core.checkpoint.manager": ["CheckpointManager"],
            "luma_core.checkpoint.read.load": ["LoadedCheckpoint"],
            "luma_core.checkpoint.read.opening": ["exists", "open"],
            "luma_core.checkpoint.read.reader": ["Checkpoint"],
            "luma_core.checkpoint.read.verify": ["Problem", "VerifyReport", "verify"],
            "luma_core.checkpoint.sharded_manager": ["ShardedCheckpointManager"],
            "luma_core.checkpoint.staging.async_executor": ["SaveHandle", "wait_for_saves"],
            "luma_core.checkpoint.storage.open": ["open_store"],
            "luma_core.checkpoint.storage.store": ["Store"],
            "luma_core.checkpoint.write.options": ["MAX_SHARD_BYTES", "SaveOptions"],
            "luma_core.checkpoint.write.prepare": ["prepare"],
            "luma_core.checkpoint.write.saver": ["async_save", "save", "save_sharded"],
        },
    )
    __getattr__ = give_moved_names(
        __name__,
        {
            "luma_core.checkpoint.format": [
                "MANIFEST_NAME",
                "MAX_CHAIN",
                "BaseEntry",
                "Chunk",
                "FileEntry",
                "ParameterEntry",
                "TensorEntry",
                "parse_manifest",
            ],
            "luma_core.checkpoint.storage": ["check_name"],
        },
        __getattr__,
    )

__all__ = [
    "MAX_SHARD_BYTES",
    "Checkpoint",
    "CheckpointManager",
    "Compression",
    "LoadedCheckpoint",
    "Manifest",
    "Problem",
    "SavableState",
    "SaveHandle",
    "SaveOptions",
    "ShardedCheckpointManager",
    "Store",
    "Summary",
    "VerifyReport",
    "async_save",
    "before_change",
    "exists",
    "flatten",
    "load",
    "load_sharded",
    "open",
    "open_store",
    "prepare",
    "save",
    "save_sharded",
    "verify",
    "wait_for_saves",
]
