"""Names for the parameters of a state that has none, from the model that it belongs to.

Optimizers keep parameters in the order of the model, and safetensors files do not keep that order.
So names are given by shape, and only where that leaves no choice: see `assign_names`.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luma_core.checkpoint.local import local_path
from luma_core.convert.base import Url
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
    names = read_model_names(local_path(model))
    return lambda shapes: assign_names(names, shapes)


def read_model_names(path: Path) -> ModelNames:
    """Read names and shapes of a model's parameters.

    Args:
        path: a safetensors file, its index, a ``torch.save`` file of the model's state dict, or a
            folder with one of these. A ``config.json`` beside it gives the order, where
            ``transformers`` is installed and knows the model.

    Raises:
        CheckpointNotFoundError: there is none of these.
        ConversionError: it cannot be read.
    """
    if path.is_dir():
        found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointNotFoundError(
                f"{path}: no model here; looked for {', '.join(_WEIGHTS)}."
            )
        path = found
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: there is no such file.")
    if path.suffix not in (".safetensors", ".json"):
        return ModelNames(str(path), _torch_shapes(path), ordered=True)
    shapes = _index_shapes(path) if path.suffix == ".json" else _safetensors_shapes(path)
    of_config = _config_shapes(path.parent)
    # A configuration that is not of these weights must not name anything.
    if of_config is not None and len(of_config.keys() & shapes.keys()) * 2 > len(shapes):
        return ModelNames(str(path), of_config, ordered=True)
    return ModelNames(str(path), shapes, ordered=False)


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


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path}: {error}.") from error


def _index_shapes(path: Path) -> dict[str, Shape]:
    try:
        files = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: not an index of safetensors files.") from error
    shapes: dict[str, Shape] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ConversionError(f"{path}: {name!r} is not the name of a file beside it.")
        shapes.update(_safetensors_shapes(path.parent / name))
    return shapes


def _torch_shapes(path: Path) -> dict[str, Shape]:
    content = load_torch_file(path)
    if isinstance(content, dict):
        content = next((content[key] for key in _NESTS if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConversionError(f"{path}: no state dict of a model in it.")
    return {key: tuple(x.shape) for key, x in content.items() if isinstance(x, Tensor)}


def _config_shapes(folder: Path) -> dict[str, Shape] | None:
    """Return the parameters of the ``transformers`` model of a folder, without its weights.

    None where there is no configuration, or nothing that can build its model.
    """
    if not (folder / "config.json").is_file():
        return None
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        kind = getattr(transformers, (config.architectures or [""])[0])
        with torch.device("meta"):
            made = kind(config)
        return {name: tuple(param.shape) for name, param in made.named_parameters()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
