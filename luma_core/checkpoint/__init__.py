"""The on-disk format: safetensors shards, checksums, and a manifest that is written last."""

from luma_core.checkpoint.compression import Chunk, Compression
from luma_core.checkpoint.manifest import (
    FileEntry,
    Manifest,
    ParameterEntry,
    Summary,
    TensorEntry,
    parse_manifest,
)
from luma_core.checkpoint.names import MANIFEST_NAME, check_name
from luma_core.checkpoint.reader import Checkpoint, LoadedCheckpoint, exists, load, open
from luma_core.checkpoint.verification import Problem, VerifyReport, verify
from luma_core.checkpoint.writer import MAX_SHARD_BYTES, SavableState, save

__all__ = [
    "MANIFEST_NAME",
    "MAX_SHARD_BYTES",
    "Checkpoint",
    "Chunk",
    "Compression",
    "FileEntry",
    "LoadedCheckpoint",
    "Manifest",
    "ParameterEntry",
    "Problem",
    "SavableState",
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
