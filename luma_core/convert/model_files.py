"""Files of a model: which there are, and what they say of its parameters without their values."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luma_core.checkpoint.format.shard import MAX_HEADER_BYTES
from luma_core.convert.alignment import Shape
from luma_core.convert.base import Url
from luma_core.convert.places import File, Folder, file_at, folder_at
from luma_core.errors import CheckpointNotFoundError, ConversionError

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
)
_NESTS = ("state_dict", "model", "model_state_dict", "module", "model_state", "net", "network")


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
    inside = [content[key] for key in _NESTS if key in content] if _is_dict(content) else []
    for found in (*inside, content):
        if _is_dict(found):
            tensors = {key: x for key, x in found.items() if isinstance(x, Tensor)}
            if tensors:
                return tensors
    keys = f": {', '.join(map(repr, list(content)[:8]))}" if _is_dict(content) else ""
    raise ConversionError(
        f"{where}: no state dict of a model in it{keys}.",
        hint="Save it with torch.save(model.state_dict(), ...).",
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def listed_names(file: File) -> tuple[str, ...] | None:
    """Return the names in a JSON file that is a list of them; None of another."""
    try:
        content = json.loads(file.read())
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        return None
    return tuple(content)


def safetensors_shapes(file: File) -> dict[str, Shape]:
    """Return the shapes in a safetensors file's header, which is all that is read.

    What is not of floating point is no parameter.
    """
    size = file.required_bytes()
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    try:
        if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {header_bytes} bytes")
        header = json.loads(file.read(8, 8 + header_bytes))
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        kinds = {name: entry["dtype"] for name, entry in header.items()}
        shapes = {name: shape for name, shape in shapes.items() if "F" in kinds[name]}
        if not all(isinstance(n, int) for shape in shapes.values() for n in shape):
            raise TypeError("a shape that is not of integers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{file}: not a safetensors file ({error}).") from error
    return shapes


def config_shapes(folder: Folder) -> dict[str, Shape] | None:
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
