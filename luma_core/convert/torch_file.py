"""Files of ``torch.save``: read without running what they contain."""

from __future__ import annotations

import importlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from luma_core.checkpoint.store import storage_errors
from luma_core.convert.layouts import torchao
from luma_core.convert.places import File
from luma_core.direct import opened
from luma_core.errors import ConversionError, LumaError, UnsafePickleError


def load_torch_file(file: File) -> Any:
    """Return what a file of ``torch.save`` holds, tensors mapped and not read.

    A remote file is mapped from a temporary copy, which goes when the last tensor of it does.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it is damaged, or no file of ``torch.save``.
        StorageError: it cannot be read.
    """
    file.required_bytes()
    with storage_errors(str(file)), file.local() as path:
        return _load(path, str(file))


def _load(path: Path, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            # What cannot be read raises; what can be needs no warning.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            with torch.serialization.safe_globals(_known_classes(path, where)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        told = str(error)
        if "weights_only" in told and "global" in told.lower():
            raise UnsafePickleError(
                f"{where}: reading it would run code that it contains.",
                hint="Save it again with torch.save(optimizer.state_dict(), ...), tensors and "
                "plain values only.",
            ) from error
        if "Unsupported operand" in told:
            raise UnsafePickleError(
                f"{where}: pickled in a way that cannot be read without running code.",
                hint="Save it again with torch.save(optimizer.state_dict(), ...), with torch's own "
                "pickle_protocol.",
            ) from error
        raise ConversionError(f"{where}: not a file of torch.save, or a damaged one.") from error
    except (LumaError, OSError, MemoryError):
        raise
    # What damaged bytes make torch.load raise is not one kind of error.
    except Exception as error:
        raise ConversionError(
            f"{where}: not a file of torch.save, or a damaged one ({type(error).__name__})."
        ) from error


def _is_zip(path: Path) -> bool:
    """Whether the file is in torch's present format; the one before 2020 cannot be mapped."""
    with opened(path) as file:
        return file.read(2) == b"PK"


def _known_classes(path: Path, where: str) -> list[Any]:
    """Return the tensor kinds of other libraries in the file, of those that are safe to read.

    Raises:
        ConversionError: their library is not installed.
    """
    if not _is_zip(path):
        return []
    found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    classes = []
    for full_name in sorted(found & torchao.GLOBALS.keys()):
        module, name = torchao.GLOBALS[full_name]
        try:
            classes.append(getattr(importlib.import_module(module), name))
        except ImportError as error:
            raise ConversionError(
                f"{where} holds {full_name}, and torchao is not installed.",
                hint="pip install torchao",
            ) from error
    return classes
