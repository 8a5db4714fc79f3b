"""``luma estimate``: how much memory optimizers need for a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luma_client.console.models import MODEL_HELP
from luma_client.console.output import JsonOption, Output, QuietOption
from luma_core import catalog

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from rich.console import Group
    from torch import nn

    from luma_client.console.models import NamedShapes

TORCH_ADAMW = "torch.optim.AdamW"
DTYPES = ("float32", "bfloat16", "float16")

HELP = (
    "Show how much memory optimizers need for a model: their state, and with weights and "
    "gradients.\n\n"
    + MODEL_HELP.format(
        known="A checkpoint and a .safetensors file know names and shapes only, and "
        "adam_mini needs --n-heads for them where there is attention."
    )
)
EPILOG = (
    "Example: luma estimate config.json --dtype bfloat16\n\n"
    "JSON keys: model, dtype, parameters, elements, weight_bytes, optimizers (of each: optimizer, "
    "codec, state_bytes, bits_per_parameter, total_bytes)"
)
_PAIRED = {"turbo_adam": ("5bit", "8bit")}
"""Optimizers that are shown with several codecs unless some are asked for."""


@dataclass(frozen=True)
class Row:
    """What one optimizer needs.

    Attributes:
        optimizer: its name in the catalogue.
        codec: how its moments are stored; None for its default.
        state_bytes: of its state.
        bits_per_parameter: the same for each number of the model.
        total_bytes: with weights and gradients.
    """

    optimizer: str
    codec: str | None
    state_bytes: int
    bits_per_parameter: float
    total_bytes: int


def command(
    model: Annotated[
        str, typer.Argument(help="The model: see above.", metavar="MODEL", show_default=False)
    ],
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            help="May be repeated; one of "
            f"{', '.join(entry.name for entry in catalog.ALGORITHMS)}.",
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            "--codec",
            metavar="NAME",
            help="How moments are stored: "
            f"{', '.join(entry.name for entry in catalog.PRESETS)}. May be repeated; without "
            "--optimizer, of adamw.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help=f"Of weights and gradients: {', '.join(DTYPES)}.")
    ] = "float32",
    n_heads: Annotated[
        int | None, typer.Option("--n-heads", metavar="N", help="Query heads, for adam_mini.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma estimate``."""
    import torch

    from luma_client.console.models import find_model
    from luma_core.errors import ConfigurationError

    output = Output(json=as_json, quiet=quiet)
    _check(optimizer, codec, dtype)
    found = find_model(model)
    named = (
        found
        if isinstance(found, list)
        else [(name, tuple(param.shape)) for name, param in found.named_parameters()]
    )
    weights: torch.dtype = getattr(torch, dtype)
    elements = sum(math.prod(shape) for _, shape in named)
    weight_bytes = elements * weights.itemsize
    rows: list[Row] = []
    for row in _choices(optimizer, codec):
        try:
            state_bytes = _state_bytes(row, found, named, weights, n_heads)
        except ConfigurationError as error:
            if optimizer:
                raise
            output.note(f"{row[0]} is left out: {error.message}")
            continue
        bits = 8 * state_bytes / elements if elements else 0.0
        rows.append(Row(*row, state_bytes, bits, 2 * weight_bytes + state_bytes))
    output.result(
        {
            "model": model,
            "dtype": dtype,
            "parameters": len(named),
            "elements": elements,
            "weight_bytes": weight_bytes,
            "optimizers": [asdict(row) for row in rows],
        },
        human=lambda: _view(len(named), elements, dtype, weight_bytes, rows),
        quiet="\n".join(str(row.state_bytes) for row in rows),
    )


def _check(optimizers: list[str] | None, codecs: list[str] | None, dtype: str) -> None:
    known = {entry.name for entry in catalog.ALGORITHMS}
    presets = {entry.name for entry in catalog.PRESETS}
    for given, option, allowed in (
        (optimizers or [], "--optimizer", known),
        (codecs or [], "--codec", presets),
        ([dtype], "--dtype", set(DTYPES)),
    ):
        for name in given:
            if name not in allowed:
                raise typer.BadParameter(
                    f"{option} {name!r} must be one of {', '.join(sorted(allowed))}."
                )


def _choices(
    optimizers: list[str] | None, codecs: list[str] | None
) -> Iterator[tuple[str, str | None]]:
    """Yield optimizers with how their moments are stored."""
    if not optimizers:
        yield TORCH_ADAMW, None
        named = [entry.name for entry in catalog.ALGORITHMS if entry.name != "adamw"]
        optimizers = ["adamw"] if codecs else named
    for name in optimizers:
        if codecs:
            yield from ((name, codec) for codec in codecs)
        elif name in _PAIRED:
            yield from ((name, codec) for codec in _PAIRED[name])
        else:
            yield name, None


def _state_bytes(
    row: tuple[str, str | None],
    found: nn.Module | NamedShapes,
    named: NamedShapes,
    dtype: Any,
    n_heads: int | None,
) -> int:
    """Return the bytes of an optimizer's state.

    Raises:
        ConfigurationError: it cannot be built for this model or with this codec.
    """
    from luma_core.optim import estimate_state
    from luma_core.partition import partition_model, partition_names

    name, codec = row
    if name == TORCH_ADAMW:
        return sum(2 * math.prod(shape) * dtype.itemsize + 4 for _, shape in named)
    options: dict[str, Any] = {} if codec is None else {"codec": codec}
    if name == "adam_mini":
        options["partition"] = (
            partition_names(found, n_heads=n_heads)
            if isinstance(found, list)
            else partition_model(found, n_heads=n_heads)
        )
    (home,) = (entry.home for entry in catalog.ALGORITHMS if entry.name == name)
    return estimate_state(named, catalog.import_home(home), dtype=dtype, **options).state_bytes


def _view(count: int, elements: int, dtype: str, weight_bytes: int, rows: list[Row]) -> Group:
    from rich.console import Group

    from luma_client.console.formats import bytes_text
    from luma_client.console.tables import plain_table

    table = plain_table(
        ["optimizer", "codec", "bits", "state", "with weights and gradients"], left=2
    )
    for row in rows:
        table.add_row(
            row.optimizer,
            row.codec or "",
            f"{row.bits_per_parameter:.2f}",
            bytes_text(row.state_bytes),
            bytes_text(row.total_bytes),
        )
    total = (
        f"{count:,} parameters of {elements:,} elements in {dtype}: "
        f"{bytes_text(weight_bytes)} of weights"
    )
    return Group(table, total)
