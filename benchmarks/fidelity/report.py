"""Tables in Markdown, and a plot of state size against gap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity.optimizers import BASELINE, entry_of
from benchmarks.fidelity.results import Gap, Results, equal_lr_gaps, gap, loss

LABEL_WIDTH_POINTS = 90
LABEL_HEIGHT_POINTS = 11


def tables(results: Results) -> str:
    """Return all tables as Markdown."""
    names = list(dict.fromkeys(run.optimizer for run in results.runs))
    parts = [_head(results), _best_table(results, names), _sweep_table(results, names)]
    parts.append(_twin_table(results, names))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Results) -> str:
    setup = results.setup
    return (
        f"{setup['machine']}, torch {results.versions['torch']}: {setup['size']} with "
        f"{setup['parameters']:,} parameters, {setup['steps']} steps of {setup['batch_tokens']:,} "
        f"tokens, {setup['schedule']} schedule, {setup['held_out_tokens']:,} held-out tokens."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a table whose first ``texts`` columns are text and the others numbers."""
    rule = ["---"] * texts + ["--:"] * (len(heads) - texts)
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _best_table(results: Results, names: Sequence[str]) -> str:
    """One row per optimizer at its own best learning rate."""
    heads = ["optimizer", "version", "bits/param", "lr", "held-out loss", "gap to AdamW", "sd"]
    heads += ["least to most", "seeds", "step, ms", "tokens/s"]
    rows = [_best_row(results, name) for name in names]
    for name, reason in results.skipped.items():
        rows.append([name, "", f"skipped: {reason}", *[""] * (len(heads) - 3)])
    return _table(heads, rows, 2)


def _best_row(results: Results, name: str) -> list[str]:
    runs = results.of(name)
    bits = f"{max(run.bits_per_parameter for run in runs):.2f}"
    head = [name, runs[0].version, bits]
    best, at_best = results.best_lr(name), results.at_best(name)
    if best is None:
        return [*head, "-", "diverged", *["-"] * 6]
    tried = sorted({run.lr for run in runs})
    edge = " (edge)" if len(tried) > 1 and best in (tried[0], tried[-1]) else ""
    found = gap(at_best, results.at_best(BASELINE))
    times = [run.step_ms for run in at_best.values() if run.step_ms is not None]
    speed = statistics.median(run.tokens_per_second for run in at_best.values())
    return [
        *head,
        f"{best:g}{edge}",
        _loss_text([loss(run) for run in at_best.values()]),
        *_gap_texts(found),
        str(len(at_best)),
        f"{statistics.median(times):.2f}" if times else "-",
        f"{speed:,.0f}",
    ]


def _loss_text(losses: Sequence[float]) -> str:
    finite = [value for value in losses if math.isfinite(value)]
    if len(finite) < len(losses):
        return f"{len(losses) - len(finite)} of {len(losses)} diverged"
    return f"{statistics.fmean(finite):.4f}"


def _gap_texts(found: Gap | None) -> list[str]:
    """Mean, sd and range."""
    if found is None:
        return ["-", "-", "-"]
    if math.isinf(found.mean):
        return ["diverged", "-", "-"]
    sd = "-" if found.sd is None else f"{found.sd:.4f}"
    return [f"{found.mean:+.4f}", sd, f"{found.low:+.4f} to {found.high:+.4f}"]


def _sweep_table(results: Results, names: Sequence[str]) -> str:
    """Mean held-out loss at each learning rate, over the seeds that ran at it."""
    heads = ["optimizer", "held-out loss by learning rate (seeds)"]
    rows = []
    for name in names:
        cells = []
        for lr in sorted({run.lr for run in results.of(name)}):
            losses = [loss(run) for run in results.of(name) if run.lr == lr]
            cells.append(f"{lr:g}: {_loss_text(losses)} ({len(losses)})")
        rows.append([name, ", ".join(cells)])
    return _table(heads, rows, 2)


def _twin(name: str) -> str:
    return entry.twin if (entry := entry_of(name)) else BASELINE


def _twin_gap(results: Results, name: str) -> Gap | None:
    return gap(results.at_best(name), results.at_best(_twin(name)))


def _twin_table(results: Results, names: Sequence[str]) -> str:
    """Gaps to the same rule with its state in float32."""
    rows = []
    for name in names:
        if name == _twin(name):
            continue
        gaps = equal_lr_gaps(results, name, _twin(name))
        cells = [f"{lr:g}: {_gap_texts(found)[0]} ({found.seeds})" for lr, found in gaps.items()]
        at_best = _gap_texts(_twin_gap(results, name))[0]
        rows.append([name, _twin(name), at_best, ", ".join(cells) or "-"])
    heads = ["optimizer", "against", "gap, each at its best", "at equal learning rate (seeds)"]
    return _table(heads, rows, 4) if rows else ""


def plot(results: Results, path: Path) -> None:
    """Draw state size against gap, one point per optimizer, its range over seeds as a bar.

    The gap is that to the same rule with its state in float32. Optimizers without a gap, such as
    those that diverged, are left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    axes.axhline(0, color="0.7", linewidth=1)
    labels: list[tuple[str, float, float]] = []
    for name in dict.fromkeys(run.optimizer for run in results.runs):
        found = _twin_gap(results, name)
        if found is None or math.isinf(found.mean) or name == _twin(name):
            continue
        bits = results.of(name)[0].bits_per_parameter
        spread = [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar([bits], [found.mean], yerr=spread, fmt="o", capsize=3)
        against = "" if _twin(name) == BASELINE else f" (to {_twin(name)})"
        labels.append((name + against, bits, found.mean))
    axes.set_xscale("log", base=2)
    ticks = [4, 8, 16, 32, 64]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(4, 160)
    axes.set_xlabel("state, bits per parameter")
    axes.set_ylabel("held-out loss minus AdamW's, nats per token")
    setup = results.setup
    axes.set_title(f"{setup['size']}, {setup['steps']} steps; bars span the seeds")
    figure.draw_without_rendering()  # where points lie is known only after layout
    _annotate(axes, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _annotate(axes: Any, labels: Sequence[tuple[str, float, float]]) -> None:
    """Write each text right of its point (text, x, y), moved up where it would cover another."""
    placed: list[tuple[float, float]] = []
    points_per_pixel = 72 / axes.figure.dpi
    for text, x, y in sorted(labels, key=lambda label: label[2]):
        across, up = axes.transData.transform((x, y)) * points_per_pixel
        height = up
        for other_across, other_height in sorted(placed, key=lambda place: place[1]):
            near = abs(other_across - across) < LABEL_WIDTH_POINTS
            if near and abs(other_height - height) < LABEL_HEIGHT_POINTS:
                height = other_height + LABEL_HEIGHT_POINTS
        placed.append((across, height))
        axes.annotate(
            text,
            (x, y),
            textcoords="offset points",
            xytext=(8, height - up),
            va="center",
            fontsize=9,
        )
