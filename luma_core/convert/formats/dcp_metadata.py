"""The ``.metadata`` file of a folder of ``torch.distributed.checkpoint``, read safely.

It is a pickle. Only the classes that describe tensors are let in, all of which are plain data.
"""

from __future__ import annotations

import importlib
import io
import pickle
from typing import TYPE_CHECKING, Any

import torch

from luma_core.convert.places import Folder
from luma_core.errors import ConversionError, UnsafePickleError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

METADATA_NAME = ".metadata"

_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = {
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if global_name not in _ALLOWED.get(module_name, ()):
            raise UnsafePickleError(
                f"{METADATA_NAME} needs {module_name}.{global_name}, which is not let in.",
                hint="Only plain checkpoints of torch.distributed.checkpoint can be read.",
            )
        return getattr(importlib.import_module(module_name), global_name)


def read_metadata(folder: Folder) -> Metadata:
    """Return the metadata of a folder.

    Raises:
        UnsafePickleError: it holds something else than descriptions of tensors.
        ConversionError: it is damaged.
        CheckpointNotFoundError: there is none.
        StorageError: it cannot be read.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    path = folder.file(METADATA_NAME)
    path.required_bytes()
    content = path.read()
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error.message}", hint=error.hint) from error
    # Damaged pickles raise whatever the classes inside make of their arguments.
    except Exception as error:
        raise ConversionError(f"{path}: damaged ({type(error).__name__}).") from error
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise ConversionError(f"{path}: not the metadata of a checkpoint in files.")
    return found
