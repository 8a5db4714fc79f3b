"""What is in a checkpoint: the manifest, shards, chunks, differences and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.lazy import export_lazily

if TYPE_CHECKING:
    from luma_core.checkpoint.format.compression import Chunk
    from luma_core.checkpoint.format.manifest import (
        MAX_CHAIN,
        BaseEntry,
        FileEntry,
        ParameterEntry,
        TensorEntry,
    )
    from luma_core.checkpoint.format.parse import parse_manifest
    from luma_core.checkpoint.storage.names import MANIFEST_NAME
else:
    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "luma_core.checkpoint.format.compression": ["Chunk"],
            "luma_core.checkpoint.format.manifest": [
                "MAX_CHAIN",
                "BaseEntry",
                "FileEntry",
                "ParameterEntry",
                "TensorEntry",
            ],
            "luma_core.checkpoint.format.parse": ["parse_manifest"],
            "luma_core.checkpoint.storage.names": ["MANIFEST_NAME"],
        },
    )

__all__ = [
    "MANIFEST_NAME",
    "MAX_CHAIN",
    "BaseEntry",
    "Chunk",
    "FileEntry",
    "ParameterEntry",
    "TensorEntry",
    "parse_manifest",
]
