"""``luma partition``: which parameters share one second moment in Adam-mini, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Group
    from torch import nn

    from luma_core.partition import PartitionTable

HELP = (
    "Show how Adam-mini cuts a model: what shares one second moment (v), and by which rule.\n\n"
    "MODEL is a function that returns a model, as module:function; a configuration of transformers "
    "(config.json or its folder); a checkpoint folder; or a .safetensors file. The first two know "
    "modules, the last two names and shapes, which need --n-heads where there is attention. No "
    "weights are read, and nothing is downloaded or unpickled. A function's module is imported, "
    "with the working directory on the path."
)
EPILOG = (
    "Example: luma partition my_package.model:make_model\n\n"
    "JSON keys: model, elements, segments, parameters"
)


def command(
    model: Annotated[
        str, typer.Argument(help="What to cut: see above.", metavar="MODEL", show_default=False)
    ],
    n_heads: Annotated[
        int | None, typer.Option("--n-heads", metavar="N", help="Query heads.")
    ] = None,
    n_kv_heads: Annotated[
        int | None, typer.Option("--n-kv-heads", metavar="N", help="Key and value heads.")
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option("--head-dim", metavar="N", help="Rows of one head.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            metavar="GLOB=CUT",
            help="Cut matching parameters by row, column, vector, element, whole, head, qkv or "
            "qkv_grouped. May be repeated; the first match counts.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma partition``."""
    output = Output(json=as_json, quiet=quiet)
    options = {
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "overrides": _overrides(override or []),
    }
    table = _partition(model, options)
    output.result(
        {"model": model, **table.to_dict()},
        human=lambda: _view(table),
        quiet=str(table.segments),
    )


def _overrides(texts: list[str]) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in texts]
    for text, (pattern, _, _) in zip(texts, pairs, strict=True):
        if not pattern:
            raise typer.BadParameter(f"--override {text!r} must be GLOB=CUT, such as '*.wq.*=row'.")
    return {pattern: cut for pattern, _, cut in pairs}


def _partition(source: str, options: dict[str, Any]) -> PartitionTable:
    from luma_core import checkpoint
    from luma_core.errors import CheckpointNotFoundError
    from luma_core.partition import partition_model, partition_names
    from luma_core.paths import resolve_path

    path = resolve_path(source)
    if path.suffix == ".safetensors" and path.is_file():
        return partition_names(_safetensors_shapes(path), **options)
    if (path / "config.json").is_file() or (path.suffix == ".json" and path.is_file()):
        return partition_model(_transformers_model(path), **options)
    if checkpoint.exists(source):
        with checkpoint.open(source) as opened:
            named = [(entry.name, entry.shape) for entry in opened.manifest.parameters]
        return partition_names(named, **options)
    if ":" in source and "/" not in source:
        return partition_model(_made_model(source), **options)
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


def _view(table: PartitionTable) -> Group:
    from rich.console import Group

    from luma_client.console.formats import shape_text
    from luma_client.console.tables import plain_table

    shown = plain_table(["parameter", "shape", "kind", "one v per", "rule", "v"], left=5)
    for row in table:
        shown.add_row(
            row.name,
            shape_text(row.shape),
            row.kind,
            row.per,
            row.why,
            f"{row.partition.segments:,}",
        )
    total = (
        f"{len(table):,} parameters of {table.elements:,} elements: {table.segments:,} values of v"
    )
    return Group(shown, total)
