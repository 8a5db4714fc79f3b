"""Training programs' folders, where the optimizer's state lies beside the model's weights."""

from __future__ import annotations

from luma_core.convert.base import Source, Url
from luma_core.convert.finding import find_state_dict
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import ModelNamer, namer_of, read_model_names
from luma_core.convert.places import Folder, folder_at
from luma_core.convert.state_dict import StateDictSource
from luma_core.convert.torch_file import load_torch_file
from luma_core.errors import ConversionError

TRAINER = "trainer"
ACCELERATE = "accelerate"

_FILES = {TRAINER: "optimizer.pt", ACCELERATE: "optimizer.bin"}


def is_trainer_folder(url: Url) -> bool:
    """Whether it is a ``checkpoint-N`` folder of ``transformers.Trainer``."""
    return folder_at(url).size(_FILES[TRAINER]) is not None


def is_accelerate_folder(url: Url) -> bool:
    """Whether it is a folder of ``Accelerator.save_state``."""
    return folder_at(url).size(_FILES[ACCELERATE]) is not None


def open_trainer(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``checkpoint-N`` folder; the errors are those of ``torch.save`` files."""
    return _open(folder_at(url), TRAINER, model)


def open_accelerate(url: Url, model: Url | None = None) -> Source:
    """Open the first optimizer's state in a folder of ``Accelerator.save_state``.

    Raises:
        ConversionError: there is more than one optimizer; or as for ``torch.save`` files.
    """
    folder = folder_at(url)
    if folder.size("optimizer_1.bin") is not None:
        raise ConversionError(
            f"{folder.where} holds the state of more than one optimizer.",
            hint="Convert the files optimizer.bin, optimizer_1.bin one by one.",
        )
    return _open(folder, ACCELERATE, model)


def _open(folder: Folder, format: str, model: Url | None) -> Source:
    file = folder.file(_FILES[format])
    state_dict = find_state_dict(load_torch_file(file), str(file))
    layout = layout_of(state_dict["state"])
    return StateDictSource(
        state_dict,
        where=str(file),
        stored_bytes=file.required_bytes(),
        format=format,
        decoder=layout.decode if layout else None,
        namer=namer_of(model) or ModelNamer(lambda: read_model_names(folder.where), asked=False),
    )
