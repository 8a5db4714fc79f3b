"""Statistics and differences as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from luma_client.console.formats import bytes_text, number, percent, shape_text

if TYPE_CHECKING:
    from rich.table import Table

    from luma_core.stats import (
        CheckpointStats,
        ErrorStats,
        MomentDiff,
        ParameterStats,
        StateDiff,
        TotalStats,
    )

SYMBOLS = {"exp_avg": "m", "exp_avg_sq": "v"}
"""How the moments are called in headings."""

_WIDE_COLUMNS = 160


def plain_table(columns: Iterable[str], *, title: str | None = None, left: int = 1) -> Table:
    """Return an empty table with light rules; all but the first ``left`` columns are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if index < left else "right",
            overflow="fold" if index < left else "ellipsis",
            no_wrap=index >= left,
        )
    return table


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Return a two-column table of names and values."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def stats_table(stats: CheckpointStats, *, columns: int) -> Table:
    """Return one row per parameter and a total.

    Args:
        stats: what was measured.
        columns: characters of a line; narrow ones leave out shapes, largest values and shares.
    """
    wide = columns >= _WIDE_COLUMNS
    names = [moment.moment for moment in stats.total.moments]
    table = plain_table(_stats_heads(names, wide), left=2 if wide else 1)
    for entry in stats.parameters:
        table.add_row(
            entry.name,
            *([shape_text(entry.shape)] if wide else []),
            *_stats_cells(entry, names, wide),
        )
    total = stats.total
    table.add_section()
    table.add_row(
        f"total ({total.parameters:,})",
        *([f"{total.elements:,}"] if wide else []),
        *_stats_cells(total, names, wide),
        style="bold",
    )
    return table


def _stats_heads(names: Sequence[str], wide: bool) -> list[str]:
    heads = ["parameter", "shape", "bits"] if wide else ["parameter", "bits"]
    for name in names:
        symbol = SYMBOLS.get(name, name)
        heads += [f"{symbol} rms"]
        heads += [f"{symbol} max", f"{symbol} zero", f"{symbol} top"] if wide else []
        heads += [f"{symbol} entropy" if wide else f"H({symbol})"]
    return [*heads, "update rms", "max", "left out"] if wide else [*heads, "update", "out"]


def _stats_cells(entry: ParameterStats | TotalStats, names: Sequence[str], wide: bool) -> list[str]:
    cells = [number(entry.bits_per_parameter, 4)]
    by_name = {moment.moment: moment for moment in entry.moments}
    for name in names:
        moment = by_name.get(name)
        if moment is None:
            cells += [number(None)] * (5 if wide else 2)
            continue
        cells.append(number(moment.value.rms))
        if wide:
            cells += [number(moment.value.max), percent(moment.zero_share)]
            cells.append(percent(moment.saturated_share))
        cells.append(number(moment.entropy_bits, 4))
    cells.append(number(entry.update.rms))
    return [*cells, *([number(entry.update.max)] if wide else []), f"{entry.nonfinite:,}"]


def scale_rows(stats: CheckpointStats, *, blocks: str) -> list[tuple[str, str]]:
    """Return a line for each moment that has block scales: how many of which power of two.

    Args:
        stats: what was measured.
        blocks: characters for bars of growing height.
    """
    rows = []
    for moment in stats.total.moments:
        scale = moment.scale
        if scale is None:
            continue
        counts, first = scale.histogram.counts, scale.histogram.first
        bars = "".join(_bar(count / max(counts), blocks) for count in counts)
        shown = f"2^{first} {bars} 2^{first + len(counts)}, " if counts else ""
        zeros = f", {percent(scale.histogram.zeros / scale.blocks)} zero" if scale.blocks else ""
        text = f"{shown}{scale.blocks:,} blocks, median {number(scale.median)}{zeros}"
        rows.append((f"{SYMBOLS.get(moment.moment, moment.moment)} scales", text))
    return rows


def _bar(share: float, blocks: str) -> str:
    return blocks[math.ceil(share * len(blocks)) - 1] if share else " "


def diff_table(diff: StateDiff) -> Table:
    """Return one row per compared parameter and a total."""
    names = [moment.moment for moment in diff.total.moments]
    columns = ["parameter"]
    for symbol in [SYMBOLS.get(name, name) for name in names]:
        columns += [f"{symbol} rms error", "max", "codes differ"]
    table = plain_table([*columns, "update rms error", "max"])
    for entry in diff.parameters:
        if entry.not_compared is not None:
            table.add_row(entry.name, entry.not_compared)
            continue
        table.add_row(entry.name, *_diff_cells(entry.moments, names), *_error_cells(entry.update))
    total = diff.total
    table.add_section()
    table.add_row(
        f"total ({total.parameters:,})",
        *_diff_cells(total.moments, names),
        *_error_cells(total.update),
        style="bold",
    )
    return table


def _diff_cells(moments: Sequence[MomentDiff], names: Sequence[str]) -> list[str]:
    by_name = {moment.moment: moment for moment in moments}
    cells: list[str] = []
    for name in names:
        moment = by_name.get(name)
        if moment is None:
            cells += [number(None)] * 3
            continue
        cells += [*_error_cells(moment.error), percent(moment.codes_differ_share)]
    return cells


def _error_cells(error: ErrorStats) -> list[str]:
    return [number(error.relative_rms), number(error.relative_max)]


def state_size_rows(*, elements: int, state_bytes: int, stored_bytes: int) -> list[tuple[str, str]]:
    """Return the lines that set a state's sizes against AdamW's 8 bytes per parameter."""
    adamw_bytes = 8 * elements
    return [
        ("in memory", _against(state_bytes, adamw_bytes)),
        ("on disk", _against(stored_bytes, adamw_bytes)),
        ("AdamW, float32", bytes_text(adamw_bytes)),
    ]


def _against(bytes_: int, adamw_bytes: int) -> str:
    share = f"  ({percent(bytes_ / adamw_bytes)} of AdamW)" if adamw_bytes else ""
    return bytes_text(bytes_) + share
