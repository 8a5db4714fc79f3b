"""``torch.save`` files of ``torch.optim.AdamW.state_dict()``, bare or in what a program saved."""

from __future__ import annotations

import os

import torch

from luma_core.checkpoint.local import local_path
from luma_core.checkpoint.store import storage_errors
from luma_core.convert.base import Progress, SinkOptions, Source, Url, Written
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import namer_of
from luma_core.convert.state_dict import StateDictSource, find_state_dict
from luma_core.convert.torch_file import load_torch_file
from luma_core.convert.writing import adamw_state_dict, written_file

FORMAT = "adamw"


def is_torch_file(url: Url) -> bool:
    """Whether there is a file, which only ``torch.load`` can say more about."""
    return local_path(url).is_file()


def open_torch_adamw(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``torch.save`` file, mapped and not read whole.

    The moments may be those of any optimizer in `luma_core.convert.layouts`.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no AdamW state; says what is wrong where.
    """
    path = local_path(url)
    content = load_torch_file(path)
    state_dict = find_state_dict(content, str(path))
    layout = layout_of(state_dict["state"])
    with storage_errors(str(path)):
        stored_bytes = path.stat().st_size
    return StateDictSource(
        state_dict,
        where=str(path),
        stored_bytes=stored_bytes,
        format=layout.name if layout else FORMAT,
        decoder=layout.decode if layout else None,
        namer=namer_of(model),
    )


def write_torch_adamw(
    source: Source,
    destination: str | os.PathLike[str],
    options: SinkOptions,
    progress: Progress | None,
    /,
) -> Written:
    """Write what ``torch.optim.AdamW.load_state_dict`` loads, moments in float32."""
    path = local_path(destination)
    with written_file(path, options) as (out, scratch):
        torch.save(adamw_state_dict(source, scratch, progress), out)
    return Written(path.stat().st_size)
