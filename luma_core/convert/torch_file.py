"""Files of ``torch.save``: read without running what they contain."""

from __future__ import annotations

import importlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from luma_core.checkpoint.storage.store import storage_errors
from luma_core.convert.foreign import SAVE_AGAIN, ForeignClasses
from luma_core.convert.layouts import torchao
from luma_core.convert.places import File
from luma_core.direct import opened
from luma_core.errors import ConversionError, LumaError, UnsafePickleError, some_names

_ZIP = b"PK"


def load_torch_file(file: File, *, whole: bool = False) -> Any:
    """Return what a file of ``torch.save`` holds, tensors mapped and not read.

    Objects of classes that torch does not know are not made: see `luma_core.convert.foreign`.

    A remote file is mapped from a temporary copy, which goes when the last tensor of it does.

    Args:
        file: where it is.
        whole: whether to refuse a file with such objects, which a copy of it would lack.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it is damaged, or no file of ``torch.save``.
        StorageError: it cannot be read.
    """
    file.required_bytes()
    with storage_errors(str(file)), file.local() as path:
        return _load(path, str(file), whole=whole)


def load_torch_bytes(content: bytes, where: str) -> Any:
    """Return what bytes of ``torch.save`` hold; the errors are those of `load_torch_file`."""
    return _load(content, where, whole=False)


def _load(place: Path | bytes, where: str, *, whole: bool) -> Any:
    foreign = ForeignClasses(where)
    try:
        return _unpickled(place, where, foreign, whole=whole)
    except pickle.UnpicklingError as error:
        told = str(error)
        if "Unsupported operand" in told:
            raise UnsafePickleError(
                f"{where}: pickled in a way that cannot be read without running code.",
                hint="Save it again with torch.save(optimizer.state_dict(), ...), with torch's own "
                "pickle_protocol.",
            ) from error
        if "weights_only" in told and "global" in told.lower():
            raise UnsafePickleError(
                f"{where}: reading it would run code that it contains.", hint=SAVE_AGAIN
            ) from error
        _refuse_foreign(foreign, where, error)
        raise ConversionError(f"{where}: not a file of torch.save, or a damaged one.") from error
    except (LumaError, OSError, MemoryError):
        raise
    # What damaged bytes make torch.load raise is not one kind of error.
    except Exception as error:
        _refuse_foreign(foreign, where, error)
        raise ConversionError(
            f"{where}: not a file of torch.save, or a damaged one ({type(error).__name__})."
        ) from error


def _unpickled(place: Path | bytes, where: str, foreign: ForeignClasses, *, whole: bool) -> Any:
    with warnings.catch_warnings():
        # What cannot be read raises; what can be needs no warning.
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        mapped = isinstance(place, Path) and _is_zip(place)
        classes = _known_classes(place, where, foreign)
        while True:
            if whole and foreign.names:
                raise UnsafePickleError(
                    f"{where} holds objects of {some_names(foreign.names)}, which a copy without "
                    "running their code would lack.",
                    hint="Give a file of tensors and plain values only.",
                )
            with torch.serialization.safe_globals([*classes, *foreign.allowed()]):
                try:
                    return torch.load(
                        _opened(place), map_location="cpu", weights_only=True, mmap=mapped
                    )
                except pickle.UnpicklingError as error:
                    if not foreign.learn(str(error)):
                        raise


def _refuse_foreign(foreign: ForeignClasses, where: str, error: Exception) -> None:
    """Blame a failure on the objects that were not made, where there are any."""
    if foreign.names:
        raise UnsafePickleError(
            f"{where}: reading it would run code of {some_names(foreign.names)}.", hint=SAVE_AGAIN
        ) from error


def _opened(place: Path | bytes) -> Any:
    return place if isinstance(place, Path) else io.BytesIO(place)


def _is_zip(place: Path | bytes) -> bool:
    """Whether it is in torch's present format; the one before 2020 cannot be mapped."""
    if isinstance(place, bytes):
        return place.startswith(_ZIP)
    with opened(place) as file:
        return file.read(len(_ZIP)) == _ZIP


def _known_classes(place: Path | bytes, where: str, foreign: ForeignClasses) -> list[Any]:
    """Return the tensor kinds of other libraries in the file, of those that are safe to read.

    What else it names, and torch does not know, goes to ``foreign``.

    Raises:
        UnsafePickleError: only a file that shall run code names that.
        ConversionError: their library is not installed.
    """
    if not _is_zip(place):
        return []
    found = set(torch.serialization.get_unsafe_globals_in_checkpoint(_opened(place)))
    for full_name in sorted(found - torchao.GLOBALS.keys()):
        foreign.add(full_name)
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
