"""Names for the parameters of a state that has none, from the model that it belongs to.

Optimizers keep parameters in the order of the model, and safetensors files do not keep that order.
So names are given by shape, and only where that leaves no choice: see `assign_names`.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luma_core.checkpoint.shard import MAX_HEADER_BYTES
from luma_core.convert.base import Url
from luma_core.convert.places import File, Folder, file_at, folder_at
from luma_core.convert.state_dict import Namer
from luma_core.convert.torch_file import load_torch_file
from luma_core.errors import CheckpointNotFoundError, ConversionError, some_names

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
)
_NESTS = ("state_dict", "model", "model_state_dict")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelNames:
    """A model's parameters.

    Attributes:
        where: what they were read from.
        shapes: shapes by name.
        ordered: whether they are in the order of the model.
    """

    where: str
    shapes: dict[str, Shape]
    ordered: bool


def namer_of(model: Url | None) -> Namer | None:
    """Return what gives names from a model; None without one.

    Raises:
        CheckpointNotFoundError: there is no model.
        ConversionError: it cannot be read.
    """
    if model is None:
        return None
    names = read_model_names(model)
    return lambda shapes: assign_names(names, shapes)


def read_model_names(model: Url) -> ModelNames:
    """Read names and shapes of a model's parameters.

    Args:
        model: a safetensors file, its index, a ``torch.save`` file of the model's state dict, or a
            folder with one of these. A ``config.json`` beside it gives the order, where
            ``transformers`` is installed and knows the model.

    Raises:
        CheckpointNotFoundError: there is none of these.
        ConversionError: it cannot be read.
    """
    file = weights_file(model)
    if not file.name.endswith((".safetensors", ".json")):
        return ModelNames(str(file), _torch_shapes(file), ordered=True)
    shapes: dict[str, Shape] = {}
    for part in safetensors_parts(file):
        shapes.update(_safetensors_shapes(part))
    of_config = _config_shapes(file.folder)
    # A configuration that is not of these weights must not name anything.
    if of_config is not None and len(of_config.keys() & shapes.keys()) * 2 > len(shapes):
        return ModelNames(str(file), of_config, ordered=True)
    return ModelNames(str(file), shapes, ordered=False)


def weights_file(model: Url) -> File:
    """Return the file that says what a model's weights are: itself, or the one in its folder.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    given = file_at(model)
    if given.is_there():
        return given
    inside = (folder_at(model).file(name) for name in _WEIGHTS)
    found = next((file for file in inside if file.is_there()), None)
    if found is None:
        raise CheckpointNotFoundError(
            f"{given}: no model here, neither as a file nor as a folder with one of "
            f"{', '.join(_WEIGHTS)}."
        )
    return found


def safetensors_parts(file: File) -> list[File]:
    """Return the safetensors files of weights: the file, or those that it is the index of.

    Raises:
        CheckpointNotFoundError: there is no such file.
        ConversionError: it is no index, or names files elsewhere.
    """
    if not file.name.endswith(".json"):
        return [file]
    file.required_bytes()
    try:
        names = sorted(set(json.loads(file.read())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{file}: not an index of safetensors files.") from error
    return [file.folder.file(name) for name in names]


def nested_weights(content: Any, where: str) -> dict[str, Tensor]:
    """Return the tensors of a model's state dict in what a training program saved.

    Raises:
        ConversionError: there is no state dict in it.
    """
    if isinstance(content, dict):
        content = next((content[key] for key in _NESTS if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConversionError(f"{where}: no state dict of a model in it.")
    return {key: x for key, x in content.items() if isinstance(x, Tensor)}


def assign_names(model: ModelNames, groups: Sequence[Sequence[Shape]]) -> list[str]:
    """Give each parameter its name, where only one assignment is possible.

    For each shape, the model and the state must have equally many parameters. If there is more
    than one, they must be of one group, and their order must be known: the model's own, or that
    of the numbers in names that differ in nothing else.

    Args:
        model: names and shapes.
        groups: shapes of each group's parameters, in order.

    Raises:
        ConversionError: the model does not fit, or more than one assignment is possible.
    """
    flat = [(shape, index) for index, shapes in enumerate(groups) for shape in shapes]
    names: dict[int, str] = {}
    for shape in {shape for shape, _ in flat}:
        places = [i for i, (other, _) in enumerate(flat) if other == shape]
        found = [name for name, other in model.shapes.items() if other == shape]
        if len(found) != len(places):
            raise ConversionError(
                f"{model.where} has {len(found)} parameters of shape {list(shape)}; the state has "
                f"{len(places)}.",
                hint="Give the model that the optimizer was built over.",
            )
        one_group = len({flat[i][1] for i in places}) == 1
        if not model.ordered:
            found.sort(key=_numbers)
        one_pattern = len({re.sub(r"\d+", "0", name) for name in found}) == 1
        if len(places) > 1 and not (one_group and (model.ordered or one_pattern)):
            raise ConversionError(
                f"{model.where}: {some_names(found)} have one shape, {list(shape)}, so their names "
                "cannot be told from shapes.",
                hint="Give a folder with config.json as well (and install transformers), or a "
                "torch.save file of the model's state dict: both have the model's order.",
            )
        names.update(zip(places, found, strict=True))
    return [names[i] for i in range(len(flat))]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _safetensors_shapes(file: File) -> dict[str, Shape]:
    """Return the shapes in a safetensors file's header, which is all that is read."""
    size = file.required_bytes()
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    try:
        if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {header_bytes} bytes")
        header = json.loads(file.read(8, 8 + header_bytes))
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        if not all(isinstance(n, int) for shape in shapes.values() for n in shape):
            raise TypeError("a shape that is not of integers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{file}: not a safetensors file ({error}).") from error
    return shapes


def _torch_shapes(file: File) -> dict[str, Shape]:
    weights = nested_weights(load_torch_file(file), str(file))
    return {name: tuple(x.shape) for name, x in weights.items()}


def _config_shapes(folder: Folder) -> dict[str, Shape] | None:
    """Return the parameters of the ``transformers`` model of a folder, without its weights.

    None where there is no configuration, or nothing that can build its model.
    """
    config_file = folder.file("config.json")
    if not config_file.is_there():
        return None
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="luma-") as scratch:
            (Path(scratch) / "config.json").write_bytes(config_file.read())
            config = transformers.AutoConfig.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False
            )
        kind = getattr(transformers, (config.architectures or [""])[0])
        with torch.device("meta"):
            made = kind(config)
        return {name: tuple(param.shape) for name, param in made.named_parameters()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
