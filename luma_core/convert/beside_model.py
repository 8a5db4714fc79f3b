"""Training programs' folders, where the optimizer's state lies beside the model's weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from luma_core.checkpoint.local import local_path
from luma_core.checkpoint.store import storage_errors
from luma_core.convert.base import Source, Url
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import Shape, assign_names, namer_of, read_model_names
from luma_core.convert.state_dict import Namer, StateDictSource, find_state_dict
from luma_core.convert.torch_file import load_torch_file
from luma_core.errors import CheckpointNotFoundError, ConversionError

TRAINER = "trainer"
ACCELERATE = "accelerate"

_FILES = {TRAINER: "optimizer.pt", ACCELERATE: "optimizer.bin"}
_log = logging.getLogger(__name__)


def is_trainer_folder(url: Url) -> bool:
    """Whether it is a ``checkpoint-N`` folder of ``transformers.Trainer``."""
    return "://" not in str(url) and (local_path(url) / _FILES[TRAINER]).is_file()


def is_accelerate_folder(url: Url) -> bool:
    """Whether it is a folder of ``Accelerator.save_state``."""
    return "://" not in str(url) and (local_path(url) / _FILES[ACCELERATE]).is_file()


def open_trainer(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``checkpoint-N`` folder; the errors are those of ``torch.save`` files."""
    return _open(local_path(url), TRAINER, model)


def open_accelerate(url: Url, model: Url | None = None) -> Source:
    """Open the first optimizer's state in a folder of ``Accelerator.save_state``.

    Raises:
        ConversionError: there is more than one optimizer; or as for ``torch.save`` files.
    """
    folder = local_path(url)
    if (folder / "optimizer_1.bin").is_file():
        raise ConversionError(
            f"{folder} holds the state of more than one optimizer.",
            hint="Convert the files optimizer.bin, optimizer_1.bin one by one.",
        )
    return _open(folder, ACCELERATE, model)


def _open(folder: Path, format: str, model: Url | None) -> Source:
    path = folder / _FILES[format]
    state_dict = find_state_dict(load_torch_file(path), str(path))
    layout = layout_of(state_dict["state"])
    with storage_errors(str(path)):
        stored_bytes = path.stat().st_size
    return StateDictSource(
        state_dict,
        where=str(path),
        stored_bytes=stored_bytes,
        format=format,
        decoder=layout.decode if layout else None,
        namer=_namer_of_folder(folder) if model is None else namer_of(model),
    )


def _namer_of_folder(folder: Path) -> Namer:
    """Return what gives names where the folder's own model allows it, unasked."""

    def names(shapes: Sequence[Sequence[Shape]]) -> list[str] | None:
        try:
            return assign_names(read_model_names(folder), shapes)
        except (CheckpointNotFoundError, ConversionError) as error:
            _log.warning("Parameters are counted and not named: %s", error)
            return None

    return names
