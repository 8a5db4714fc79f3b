"""Models as the command line takes them: what parameters they have, without their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

MODEL_HELP = (
    "MODEL is a function that returns a model, as module:function; a configuration of transformers "
    "(config.json or its folder); a checkpoint folder; or a .safetensors file. {known} No "
    "weights are read, and nothing is downloaded or unpickled. A function's module is imported, "
    "with the working directory on the path."
)
"""What commands say of it."""

NamedShapes = list[tuple[str, tuple[int, ...]]]


def find_model(source: str) -> nn.Module | NamedShapes:
    """Return a model on ``meta``, or names and shapes where no more is known.

    Raises:
        CheckpointNotFoundError: there is nothing of the kind.
        ConfigurationError: no model can be built from it.
        CorruptCheckpointError: a file cannot be read.
    """
    from luma_core import checkpoint
    from luma_core.errors import CheckpointNotFoundError
    from luma_core.paths import resolve_path

    path = resolve_path(source)
    if path.suffix == ".safetensors" and path.is_file():
        return _safetensors_shapes(path)
    if (path / "config.json").is_file() or (path.suffix == ".json" and path.is_file()):
        return _transformers_model(path)
    if checkpoint.exists(source):
        with checkpoint.open(source) as opened:
            return [(entry.name, entry.shape) for entry in opened.manifest.parameters]
    if ":" in source and "/" not in source:
        return _made_model(source)
    raise CheckpointNotFoundError(
        f"{source}: there is no such file or folder, and it is not module:function.",
        hint="Give a config.json, a checkpoint, a .safetensors file, or package.module:function.",
    )


def _safetensors_shapes(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    from luma_core.errors import CorruptCheckpointError

    try:
        with safe_open(path, framework="pt") as file:
            return [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptCheckpointError(f"{path}: {error}.") from error


def _transformers_model(path: Path) -> nn.Module:
    """Build a model from a configuration, without weights and without code of its own."""
    import importlib

    import torch

    from luma_core.errors import ConfigurationError

    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigurationError(
            f"{path} needs the package transformers, which is not installed.",
            hint="Install it, or give module:function.",
        ) from error
    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        named = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, named, None)
        with torch.device("meta"):
            made = kind(config) if kind else transformers.AutoModel.from_config(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: transformers cannot build its model: {error}") from error
    if not isinstance(made, torch.nn.Module):
        raise ConfigurationError(f"{path}: {named!r} is not a model.")
    return made


def _made_model(source: str) -> nn.Module:
    """Call ``module:function`` with the working directory importable."""
    import importlib
    import sys

    import torch

    from luma_core.errors import ConfigurationError

    module_name, _, function_name = source.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{source}: {error}.") from error
    finally:
        sys.path.remove("")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigurationError(f"{source}: module {module_name!r} has no such function.")
    try:
        with torch.device("meta"):
            made = function()
    except (NotImplementedError, RuntimeError):
        made = function()  # some models look at values while they are built
    if not isinstance(made, torch.nn.Module):
        raise ConfigurationError(
            f"{source} returned a {type(made).__name__}; it must return a torch.nn.Module."
        )
    return made
