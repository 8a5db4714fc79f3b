"""The page: what was measured, drawn and put into words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from luma_client.console.formats import bytes_text, number, percent, shape_text, signed_percent
from luma_client.demo.report.chart import (
    Axis,
    Bar,
    Series,
    bar_chart,
    histogram,
    line_chart,
    padded,
    shown_bins,
)
from luma_client.demo.report.style import CSS
from luma_client.demo.results import MAX_LOSS_GAP, DemoResult
from luma_client.demo.steps import smoothed
from luma_core.stats import ErrorStats, ParameterStats, QuantityStats, TotalStats

_SYMBOLS = {"exp_avg": "m", "exp_avg_sq": "v"}


def render(result: DemoResult) -> str:
    """Return the report of one demo run as a complete HTML document."""
    body = [
        _head(result),
        _tiles(result),
        _checks(result),
        f'<div class="grid2">{_losses(result)}{_gap(result)}</div>',
        f'<div class="grid2">{_sizes(result)}{_errors(result)}</div>',
        _histograms(result),
        _table(result),
        _foot(result),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>LUMA demo</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _card(title: str, content: str, *, note: str = "") -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{escape(title)}</h2>{told}{content}</section>'


def _head(result: DemoResult) -> str:
    setup = result.setup
    return (
        "<header><h1>LUMA, measured</h1>"
        f'<p class="quiet">A GPT of {setup.parameters:,} parameters, trained for {setup.steps:,} '
        f"steps on {setup.train_bytes:,} bytes of Python's own documentation; "
        f"{setup.held_out_bytes:,} bytes held out. {escape(setup.device)}, "
        f"PyTorch {escape(setup.torch_version)}, seed {setup.seed}.</p></header>"
    )


def _tiles(result: DemoResult) -> str:
    adamw, luma = result.training
    sizes = result.sizes
    tiles = [
        (
            f"{luma.bytes_per_parameter:.2f} B",
            f"of optimizer state per parameter; AdamW {adamw.bytes_per_parameter:.2f} B",
        ),
        (
            signed_percent(result.loss_gap),
            f"held-out loss against AdamW: {luma.held_out_loss:.4f} to {adamw.held_out_loss:.4f}",
        ),
        (
            bytes_text(sizes.checkpoint_state_bytes),
            f"of state on disk; torch.save of AdamW's takes {bytes_text(sizes.adamw_file_bytes)}",
        ),
        (
            percent(result.conversion.update.relative_rms, 2),
            "relative RMS error of the update after coding AdamW's true state",
        ),
    ]
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="card tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
            for value, text in tiles
        )
        + "</div>"
    )


def _checks(result: DemoResult) -> str:
    items = "".join(
        f'<li><span class="{"pass" if check.ok else "fail"}">{"✓" if check.ok else "✗"}</span>'
        f"<span>{escape(check.name)}</span>"
        f'<span class="measured">{escape(check.measured)}</span></li>'
        for check in result.checks
    )
    title = "All checks passed" if result.ok else "Some checks failed"
    return _card(title, f'<ul class="checks">{items}</ul>')


def _losses(result: DemoResult) -> str:
    adamw, luma = result.training
    window = max(result.setup.steps // 40, 1)
    series = [
        Series("AdamW, training", smoothed(adamw.losses, window), "s1 faint"),
        Series("LUMA, training", smoothed(luma.losses, window), "s2 faint"),
        Series("AdamW, held out", adamw.held_out, "s1", markers=True),
        Series("LUMA, held out", luma.held_out, "s2 dashed", markers=True),
        Series("LUMA, then AdamW", result.conversion.continued, "s3 hollow", markers=True),
    ]
    values = [y for s in series for _, y in s.points]
    chart = line_chart(
        series,
        x=Axis("step", 0, result.setup.steps),
        y=Axis("loss, nats per byte", *padded(values)),
        title="Training and held-out loss over steps",
        value_text="{:.4f}".format,
    )
    note = f"Training loss is the mean over {window} step{'s' * (window > 1)}; same batches."
    return _card("Loss", f'<div class="scroll">{chart}</div>', note=note)


def _gap(result: DemoResult) -> str:
    adamw, luma = result.training
    reference = dict(adamw.held_out)
    gaps = [(step, 100 * (loss / reference[step] - 1)) for step, loss in luma.held_out]
    limit = 100 * MAX_LOSS_GAP
    low, high = padded([*(gap for _, gap in gaps), -limit, limit], 0.2)
    chart = line_chart(
        [Series("LUMA against AdamW, held out", gaps, "s2", markers=True)],
        x=Axis("step", 0, result.setup.steps),
        y=Axis("difference, %", low, high),
        title="Held-out loss of LUMA relative to AdamW over steps",
        band=(-limit, limit),
        value_text="{:+.3f}%".format,
    )
    note = f"The band is what passes after the last step: {limit:g}% to either side."
    return _card("How far apart", f'<div class="scroll">{chart}</div>', note=note)


def _sizes(result: DemoResult) -> str:
    adamw, luma = result.training
    sizes = result.sizes
    chart = bar_chart(
        [
            (
                "Optimizer state in memory",
                [
                    Bar("AdamW", adamw.state_bytes, bytes_text(adamw.state_bytes), "s1"),
                    Bar("LUMA", luma.state_bytes, bytes_text(luma.state_bytes), "s2"),
                ],
            ),
            (
                "Optimizer state on disk",
                [
                    Bar(
                        "AdamW, torch.save",
                        sizes.adamw_file_bytes,
                        bytes_text(sizes.adamw_file_bytes),
                        "s1",
                    ),
                    Bar(
                        "LUMA checkpoint",
                        sizes.checkpoint_state_bytes,
                        bytes_text(sizes.checkpoint_state_bytes),
                        "s2",
                    ),
                ],
            ),
        ]
    )
    other = bytes_text(sizes.checkpoint_total_bytes - sizes.checkpoint_state_bytes)
    note = f"The checkpoint also holds the model's weights, index and manifest: {other}."
    return _card("Sizes", chart, note=note)


def _errors(result: DemoResult) -> str:
    conversion = result.conversion
    rows: list[tuple[str, ErrorStats]] = [
        ("m, first moment", conversion.m),
        ("v, second moment", conversion.v),
        ("update", conversion.update),
    ]
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{percent(error.relative_rms)}</td>"
        f"<td>{percent(error.relative_max)}</td><td>{percent(error.element_max)}</td></tr>"
        for name, error in rows
    )
    head = "<tr><th></th><th>RMS</th><th>largest</th><th>worst element</th></tr>"
    table = f'<div class="scroll"><table>{head}{body}</table></div>'
    note = (
        "AdamW's true float32 state against its LUMA coding. RMS: rms(error) / rms(value). "
        "Largest: max |error| / max |value|. Worst element: max of |error| / |value| over all "
        f"{conversion.m.elements:,} elements but zeros."
    )
    return _card("Coding error", table, note=note)


def _histograms(result: DemoResult) -> str:
    total = result.stats.total
    quantities: list[tuple[str, QuantityStats]] = [
        (f"|{_SYMBOLS.get(moment.moment, moment.moment)}|", moment.value)
        for moment in total.moments
    ]
    quantities.append(("|update|", total.update))
    figures = "".join(
        _histogram(name, quantity, result.stats.histogram_edges, f"s{index + 2}")
        for index, (name, quantity) in enumerate(quantities)
    )
    note = (
        f"All {total.elements:,} elements of the checkpoint at step {total.step:,}, as the server "
        "reported them. m and v in units of the gradient and its square; the update in units of "
        "the learning rate."
    )
    return _card("Inside the state", f'<div class="grid3">{figures}</div>', note=note)


def _histogram(name: str, quantity: QuantityStats, edges: Sequence[float], style: str) -> str:
    counts = quantity.histogram.counts
    bins = shown_bins(counts)
    beyond = quantity.elements - quantity.nonfinite - quantity.histogram.zeros
    beyond -= sum(counts[i] for i in bins)
    chart = histogram(
        counts, edges, x_label=f"{name}, log scale", style=style, title=f"Histogram of {name}"
    )
    told = (
        f"rms {number(quantity.rms)}, max {number(quantity.max)}; zeros: "
        f"{quantity.histogram.zeros:,}; outside the picture: {beyond:,}"
    )
    return f'<figure>{chart}<figcaption class="note">{escape(told)}</figcaption></figure>'


def _table(result: DemoResult) -> str:
    stats = result.stats
    total = stats.total
    names = [moment.moment for moment in total.moments]
    heads = ["parameter", "shape", "bits"]
    for name in names:
        symbol = _SYMBOLS.get(name, name)
        heads += [f"{symbol} {what}" for what in ("rms", "zero", "top", "entropy")]
    head = "".join(f"<th>{escape(text)}</th>" for text in (*heads, "update rms", "update max"))
    rows = [_row(entry.name, shape_text(entry.shape), entry, names) for entry in stats.parameters]
    rows.append(_row("total", f"{total.elements:,}", total, names, style="total"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = (
        "Bits per parameter in memory; zero and top: shares of codes at either end of the grid; "
        "entropy of the codes in bits, what a perfect entropy coder would need."
    )
    return _card("Parameter by parameter", f'<div class="scroll wide">{table}</div>', note=note)


def _row(
    name: str,
    shape: str,
    entry: ParameterStats | TotalStats,
    names: Sequence[str],
    *,
    style: str = "",
) -> str:
    by_name = {moment.moment: moment for moment in entry.moments}
    cells = [name, shape, number(entry.bits_per_parameter, 4)]
    for key in names:
        moment = by_name.get(key)
        if moment is None:
            cells += [number(None)] * 4
            continue
        cells += [number(moment.value.rms), percent(moment.zero_share, 2)]
        cells += [percent(moment.saturated_share, 2), number(moment.entropy_bits, 4)]
    cells += [number(entry.update.rms), number(entry.update.max)]
    return f'<tr class="{style}">' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"


def _foot(result: DemoResult) -> str:
    return (
        f"<footer>Every number was measured in this run, which took {result.seconds:.0f} s. "
        f"Statistics from {escape(result.server)}. Run it again with <code>luma demo</code>."
        "</footer>"
    )
