"""Lightning's ``.ckpt`` files, which hold the state of one optimizer under ``optimizer_states``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luma_core.checkpoint.local import local_path
from luma_core.checkpoint.store import storage_errors
from luma_core.convert.base import Progress, SinkOptions, Source, Url, Written
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import ModelNames, Shape, assign_names, namer_of
from luma_core.convert.state_dict import StateDictSource, find_state_dict
from luma_core.convert.torch_file import load_torch_file
from luma_core.convert.writing import adamw_state_dict, written_file
from luma_core.errors import ConfigurationError, ConversionError, LumaError

FORMAT = "lightning"

_MARK = "pytorch-lightning_version"


def is_lightning(url: Url) -> bool:
    """Whether it is a ``.ckpt`` file of Lightning's."""
    path = None if "://" in str(url) else local_path(url)
    if path is None or path.suffix != ".ckpt" or not path.is_file():
        return False
    try:
        content = load_torch_file(path)
    except LumaError:
        return False
    return isinstance(content, dict) and _MARK in content


def open_lightning(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``.ckpt`` file; its weights name the parameters where they can.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no state of a single AdamW; says what is wrong where.
    """
    path = local_path(url)
    content = load_torch_file(path)
    state_dict = find_state_dict(content, str(path))
    layout = layout_of(state_dict["state"])
    weights = content.get("state_dict") if isinstance(content, dict) else None

    def names(shapes: Sequence[Sequence[Shape]]) -> list[str] | None:
        known = {
            name: tuple(x.shape) for name, x in (weights or {}).items() if isinstance(x, Tensor)
        }
        try:
            return assign_names(ModelNames(str(path), known, ordered=True), shapes)
        except ConversionError:
            return None

    with storage_errors(str(path)):
        stored_bytes = path.stat().st_size
    return StateDictSource(
        state_dict,
        where=str(path),
        stored_bytes=stored_bytes,
        format=FORMAT,
        decoder=layout.decode if layout else None,
        namer=namer_of(model) or names,
    )


def write_lightning(
    source: Source, destination: Url, options: SinkOptions, progress: Progress | None, /
) -> Written:
    """Write a copy of a ``.ckpt`` file, given as ``options.model``, with the state replaced.

    Raises:
        ConfigurationError: no file was given.
        ConversionError: it is none of Lightning's, or its optimizer has other parameters.
    """
    if options.model is None:
        raise ConfigurationError(
            "to='lightning' needs model=, the .ckpt file to write a copy of.",
            hint="Give it with --model.",
        )
    content: Any = load_torch_file(local_path(options.model))
    if not isinstance(content, dict) or _MARK not in content:
        raise ConversionError(f"{options.model}: none of Lightning's files: it has no {_MARK!r}.")
    original = open_lightning(options.model)
    found, given = (
        [(info.shape, info.group) for info in some.parameters()] for some in (original, source)
    )
    if found != given:
        raise ConversionError(
            f"the optimizer in {options.model} has other parameters or groups than the state: "
            f"{len(found)} and {len(given)} parameters.",
            hint="Give a .ckpt file of the same model and optimizer.",
        )
    path = local_path(destination)
    with written_file(path, options) as (out, scratch):
        state = adamw_state_dict(source, scratch, progress)
        for group in state["param_groups"]:
            group.pop("param_names", None)
        torch.save({**content, "optimizer_states": [state]}, out)
    return Written(path.stat().st_size)
