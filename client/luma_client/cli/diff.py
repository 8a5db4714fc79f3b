"""``luma diff``: how far two optimizer states are apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luma_client.cli.stats import ParamOption
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.console import Group

    from luma_core.stats import StateDiff

HELP = (
    "Compare two optimizer states, A being the reference.\n\nPer parameter and in total: "
    "rms(B - A) / rms(A) and max|B - A| / max|A| of m, of v and of the update "
    "m_hat / (sqrt(v_hat) + eps), and the share of stored codes that differ."
)
EPILOG = (
    "Example: luma diff adamw.pt runs/gpt2/1000\n\nJSON keys: a, b, identical, values_equal, "
    "total, parameters, only_in_a, only_in_b"
)

_StateArgument = Annotated[
    str,
    typer.Argument(help="Checkpoint folder, or an AdamW state dict file.", show_default=False),
]


def command(
    a: _StateArgument,
    b: _StateArgument,
    param: ParamOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma diff``."""
    from luma_client.console.sources import open_state, require_match
    from luma_core import stats

    output = Output(json=as_json, quiet=quiet)
    with open_state(a) as source_a, open_state(b) as source_b:
        require_match(source_a, param)
        with output.progress("comparing", unit="parameters") as progress:
            result = stats.diff(source_a, source_b, pattern=param, progress=progress)
    output.result(
        {"a": a, "b": b, "values_equal": _values_equal(result), **asdict(result)},
        human=lambda: _view(a, b, result),
        quiet="identical" if result.identical else "different",
    )


def _values_equal(result: StateDiff) -> bool:
    """Whether both have the same parameters, with equal moments and updates."""
    if result.identical:
        return True
    if result.only_in_a or result.only_in_b:
        return False
    if any(entry.not_compared is not None for entry in result.parameters):
        return False
    errors = [result.total.update, *(moment.error for moment in result.total.moments)]
    return all(error.differing == 0 and error.nonfinite == 0 for error in errors)


def _view(a: str, b: str, result: StateDiff) -> Group:
    from rich.console import Group, RenderableType

    from luma_client.console.tables import diff_table

    parts: list[RenderableType] = [diff_table(result)]
    for place, names in ((a, result.only_in_a), (b, result.only_in_b)):
        if names:
            parts.append(f"only in {place}: {', '.join(names)}")
    if _values_equal(result) and not result.identical:
        parts.append("All values are equal; they are stored differently.")
        return Group(*parts)
    same = result.total.identical_parameters
    parts.append(
        f"{same:,} of {result.total.parameters:,} parameters are stored identically: codecs, "
        "counters and every bit of their tensors."
    )
    return Group(*parts)
