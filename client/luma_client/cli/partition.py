"""``luma partition``: which parameters share one second moment in Adam-mini, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luma_client.console.models import MODEL_HELP
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.console import Group

    from luma_core.partition import PartitionTable

HELP = (
    "Show how Adam-mini cuts a model: what shares one second moment (v), and by which rule.\n\n"
    + MODEL_HELP.format(
        known="The first two know modules, the last two names and shapes, which need --n-heads "
        "where there is attention."
    )
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
    from luma_client.console.models import find_model
    from luma_core.partition import partition_model, partition_names

    found = find_model(source)
    return (
        partition_names(found, **options)
        if isinstance(found, list)
        else partition_model(found, **options)
    )


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
