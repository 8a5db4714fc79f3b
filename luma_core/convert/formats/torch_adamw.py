"""``torch.save`` files of ``torch.optim.AdamW.state_dict()``, bare or in what a program saved."""

from __future__ import annotations

import os

from luma_core.convert.base import ConvertOptions, Progress, Source, Url, Written
from luma_core.convert.finding import find_state_dict
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import namer_of
from luma_core.convert.places import file_and_choice
from luma_core.convert.state_dict import StateDictSource
from luma_core.convert.targets import write_torch_file
from luma_core.convert.torch_file import load_torch_file
from luma_core.convert.writing import adamw_state_dict

FORMAT = "adamw"


def is_torch_file(url: Url) -> bool:
    """Whether there is a file, which only ``torch.load`` can say more about."""
    return file_and_choice(url)[0].is_there()


def open_torch_adamw(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``torch.save`` file, mapped and not read whole.

    Behind a ``#`` in the URL may stand which of several optimizers is meant.

    The moments may be those of any optimizer in `luma_core.convert.layouts`.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no AdamW state; says what is wrong where.
    """
    file, choice = file_and_choice(url)
    state_dict = find_state_dict(load_torch_file(file), str(file), choice)
    layout = layout_of(state_dict["state"])
    return StateDictSource(
        state_dict,
        where=str(file),
        stored_bytes=file.required_bytes(),
        format=layout.name if layout else FORMAT,
        decoder=layout.decode if layout else None,
        namer=namer_of(model),
    )


def write_torch_adamw(
    source: Source,
    destination: str | os.PathLike[str],
    options: ConvertOptions,
    progress: Progress | None,
    /,
) -> Written:
    """Write what ``torch.optim.AdamW.load_state_dict`` loads, moments in float32."""
    return write_torch_file(
        destination, options, lambda scratch: adamw_state_dict(source, scratch, progress)
    )
