"""``luma stats``: what is inside an optimizer's state."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.console import Group

    from luma_core.stats import CheckpointStats

HELP = (
    "Measure moments, scales, codes and updates, per parameter and in total.\n\nColumns: bits per "
    "parameter in memory; of each moment the root mean square, the largest magnitude, the shares "
    "of codes that are zero and at the top of the grid, and the codes' entropy H in bits; rms and "
    "largest magnitude of the update m_hat / (sqrt(v_hat) + eps); blocks left out so far because "
    "their update was not finite. Lines below 160 characters show some of them; --json has all. "
    "Below, the block scales of each moment by power of two."
)
EPILOG = (
    "Example: luma stats runs/gpt2/1000 --param '*.mlp.*'\n\nJSON keys: path, total, parameters, "
    "histogram_edges, version"
)

ParamOption = Annotated[
    str | None,
    typer.Option("--param", metavar="GLOB", help="Only parameters whose name matches."),
]


def command(
    path: Annotated[
        str,
        typer.Argument(help="Checkpoint folder, or an AdamW state dict file.", show_default=False),
    ],
    param: ParamOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma stats``."""
    from luma_client.console.sources import open_state, require_match
    from luma_core import stats

    output = Output(json=as_json, quiet=quiet)
    with open_state(path) as source:
        require_match(source, param)
        with output.progress("measuring", unit="parameters") as progress:
            result = stats.compute(source, pattern=param, progress=progress)
    output.result(
        {"path": path, **asdict(result)},
        human=lambda: _view(result, output.columns),
        quiet=str(result.total.bits_per_parameter),
    )


def _view(result: CheckpointStats, columns: int) -> Group:
    from rich.console import Group

    from luma_client.console.tables import facts, scale_rows, stats_table

    missing = result.total.parameters_without_state
    note = f"{missing:,} of them have no state yet: they had no gradient." if missing else None
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    scales = scale_rows(result, blocks="▁▂▃▄▅▆▇█" if unicode else "12345678")
    shown = [stats_table(result, columns=columns), facts(scales) if scales else None, note]
    return Group(*(part for part in shown if part is not None))
