"""The on-disk format: safetensors shards, checksums, and a manifest that is written last."""

from luma_core.checkpoint.background import SaveHandle
from luma_core.checkpoint.compression import Chunk, Compression
from luma_core.checkpoint.loading import LoadedCheckpoint, load
from luma_core.checkpoint.manager import CheckpointManager
from luma_core.checkpoint.manifest import (
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
    parse_manifest,
)
from luma_core.checkpoint.names import MANIFEST_NAME, check_name
from luma_core.checkpoint.plan import SavableState
from luma_core.checkpoint.reader import Checkpoint, exists, open
from luma_core.checkpoint.verification import Problem, VerifyReport, verify
from luma_core.checkpoint.writer import MAX_SHARD_BYTES, save

__all__ = [
    "MANIFEST_NAME",
    "MAX_SHARD_BYTES",
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
    "Summary",
    "TensorEntry",
    "VerifyReport",
    "check_name",
    "exists",
    "load",
    "open",
    "parse_manifest",
    "save",
    "verify",
]
