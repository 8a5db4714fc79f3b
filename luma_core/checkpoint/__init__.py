"""The on-disk format: safetensors shards, checksums, and a manifest that is written last."""

from luma_core.changes import before_change
from luma_core.checkpoint.background import SaveHandle, wait_for_saves
from luma_core.checkpoint.compression import Chunk, Compression
from luma_core.checkpoint.distributed import load_sharded, save_sharded
from luma_core.checkpoint.flatten import flatten
from luma_core.checkpoint.loading import LoadedCheckpoint, load
from luma_core.checkpoint.manager import CheckpointManager
from luma_core.checkpoint.manifest import (
    MAX_CHAIN,
    BaseEntry,
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
    parse_manifest,
)
from luma_core.checkpoint.names import MANIFEST_NAME, check_name
from luma_core.checkpoint.plan import SavableState
from luma_core.checkpoint.preparation import prepare
from luma_core.checkpoint.reader import Checkpoint, exists, open
from luma_core.checkpoint.sharded_manager import ShardedCheckpointManager
from luma_core.checkpoint.verification import Problem, VerifyReport, verify
from luma_core.checkpoint.writer import MAX_SHARD_BYTES, save

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
    "ShardedCheckpointManager",
    "Summary",
    "TensorEntry",
    "VerifyReport",
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
