"""Lightning's ``.ckpt`` files, which hold the state of one optimizer under ``optimizer_states``."""

from __future__ import annotations

from typing import IO, Any

from torch import Tensor

from luma_core.convert.base import ConvertOptions, Progress, Source, Url, Written
from luma_core.convert.finding import find_place, find_state_dict
from luma_core.convert.layouts import layout_of
from luma_core.convert.names import ModelNamer, ModelNames, namer_of
from luma_core.convert.places import file_and_choice
from luma_core.convert.state_dict import StateDictSource
from luma_core.convert.targets import write_torch_file
from luma_core.convert.torch_file import load_torch_file
from luma_core.convert.writing import adamw_state_dict
from luma_core.errors import ConfigurationError, ConversionError, LumaError

FORMAT = "lightning"

_MARK = "pytorch-lightning_version"
_STATES = "optimizer_states"


def is_lightning(url: Url) -> bool:
    """Whether it is a ``.ckpt`` file of Lightning's."""
    file, _ = file_and_choice(url)
    if not file.name.endswith(".ckpt") or not file.is_there():
        return False
    try:
        content = load_torch_file(file)
    except LumaError:
        return False
    return isinstance(content, dict) and _MARK in content


def open_lightning(url: Url, model: Url | None = None) -> Source:
    """Open the state in a ``.ckpt`` file; its weights name the parameters where they can.

    Behind a ``#`` in the URL may stand which of several optimizers is meant.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no AdamW state, or several and none is chosen; says what is
            wrong where.
    """
    file, choice = file_and_choice(url)
    content = load_torch_file(file)
    state_dict = find_state_dict(content, str(file), choice)
    layout = layout_of(state_dict["state"])
    weights = content.get("state_dict") if isinstance(content, dict) else None

    def model_names() -> ModelNames:
        items = weights.items() if isinstance(weights, dict) else ()
        tensors = {name: x for name, x in items if isinstance(x, Tensor)}
        return ModelNames.of_tensors(str(file), tensors)

    return StateDictSource(
        state_dict,
        where=str(file),
        stored_bytes=file.required_bytes(),
        format=FORMAT,
        decoder=layout.decode if layout else None,
        namer=namer_of(model) or ModelNamer(model_names, asked=False),
    )


def write_lightning(
    source: Source, destination: Url, options: ConvertOptions, progress: Progress | None, /
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
    file, choice = file_and_choice(options.model)
    content: Any = load_torch_file(file, whole=True)
    if not isinstance(content, dict) or _MARK not in content:
        raise ConversionError(f"{options.model}: none of Lightning's files: it has no {_MARK!r}.")
    place, _ = find_place(content.get(_STATES), str(file), choice.removeprefix(f"{_STATES}."))
    index = int(place)
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

    def made(scratch: IO[bytes]) -> dict[str, Any]:
        state = adamw_state_dict(source, scratch, progress)
        for group in state["param_groups"]:
            group.pop("param_names", None)
        states = list(content[_STATES])
        states[index] = state
        return {**content, _STATES: states}

    return write_torch_file(destination, options, made)
