"""The on-disk format: safetensors shards, checksums, and a manifest that is written last."""

from luma_core.changes import before_change
from luma_core.checkpoint.flatten import flatten
from luma_core.checkpoint.format.compression import Chunk, Compression
from luma_core.checkpoint.format.manifest import (
    MAX_CHAIN,
    BaseEntry,
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
    parse_manifest,
)
from luma_core.checkpoint.format.plan import SavableState
from luma_core.checkpoint.loading import load, load_sharded
from luma_core.checkpoint.manager import CheckpointManager
from luma_core.checkpoint.read.load import LoadedCheckpoint
from luma_core.checkpoint.read.reader import Checkpoint, exists, open
from luma_core.checkpoint.read.verify import Problem, VerifyReport, verify
from luma_core.checkpoint.sharded_manager import ShardedCheckpointManager
from luma_core.checkpoint.staging.async_executor import SaveHandle, wait_for_saves
from luma_core.checkpoint.storage.names import MANIFEST_NAME, check_name
from luma_core.checkpoint.write.options import MAX_SHARD_BYTES, SaveOptions
from luma_core.checkpoint.write.prepare import prepare
from luma_core.checkpoint.write.saver import async_save, save, save_sharded

__all__ = [
    "MANIFEST_NAME",
    "MAX_CHAIN",
    "MAX_SHARD_BYTES",
    "BaseEntry",
    "Checkpoint",
    "CheckpointManager",
    "Chunk",
    "Compression",
    "FileEntry",
    "LoadedCheckpoint",
    "Manifest",
    "ParameterEntry",
    "Problem",
    "SavableState",
    "SaveHandle",
    "SaveOptions",
    "ShardedCheckpointManager",
    "Summary",
    "TensorEntry",
    "VerifyReport",
    "async_save",
    "before_change",
    "check_name",
    "exists",
    "flatten",
    "load",
    "load_sharded",
    "open",
    "parse_manifest",
    "prepare",
    "save",
    "save_sharded",
    "verify",
    "wait_for_saves",
]
