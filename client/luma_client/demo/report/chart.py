"""Small SVG charts: lines, bars and histograms with axes, units and hover titles.

Colours come from the page's style sheet by class (``s1``, ``s2``, ...), so that charts follow its
light and dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: what the legend calls it; unnamed lines are not in the legend.
        points: x and y.
        style: class of its colour, and ``faint``, ``dashed`` or ``hollow``.
        markers: whether each point is marked and tells its value.
    """

    name: str
    points: Points
    style: str
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        label: quantity and unit.
        low: value at its begin.
        high: value at its end.
        text: how its values are written.
    """

    label: str
    low: float
    high: float
    text: Callable[[float], str] = "{:g}".format

    def ticks(self, about: int) -> list[float]:
        """Return about that many round values inside the axis."""
        span = self.high - self.low
        raw = span / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The plotting area of two axes.

    Attributes:
        x: horizontal axis.
        y: vertical axis.
        width: of the whole chart, in pixels of its own.
        height: likewise.
    """

    x: Axis
    y: Axis
    width: int = 560
    height: int = 300

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a value."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return (
            round(_LEFT + across * (self.width - _LEFT - _RIGHT), 1),
            round(self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM), 1),
        )

    def svg(self, content: Sequence[str], *, title: str, x_ticks: int = 6) -> str:
        """Return the chart with its axes around ``content``."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        box = f"0 0 {self.width} {self.height}"
        parts = [f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">']
        for value in self.y.ticks(5):
            _, y = self.at(self.x.low, value)
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
            parts.append(_text(_LEFT - 8, y + 4, self.y.text(value), "end"))
        for value in self.x.ticks(x_ticks):
            x, _ = self.at(value, self.y.low)
            parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 5}"/>')
            parts.append(_text(x, bottom + 19, self.x.text(value), "middle"))
        parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
        parts.append(_text((_LEFT + right) / 2, self.height - 6, self.x.label, "middle", "label"))
        middle = (_TOP + bottom) / 2
        turn = f' transform="rotate(-90 14 {middle})"'
        parts.append(_text(14, middle, self.y.label, "middle", "label", turn))
        return "".join([*parts, *content, "</svg>"])


def _text(
    x: float, y: float, text: str, anchor: str, style: str = "tick", attributes: str = ""
) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>'
        f"{escape(text)}</text>"
    )


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of ``values`` with a margin."""
    low, high = min(values), max(values)
    margin = share * (high - low) or max(abs(high), 1.0) * share
    return low - margin, high + margin


def legend(series: Sequence[Series]) -> str:
    """Return the legend of the named series."""
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" class="key"><path class="line {s.style}" d="M1 5H25"/>'
        + (f'<circle class="dot {s.style}" cx="13" cy="5" r="3.5"/>' if s.markers else "")
        + f"</svg>{escape(s.name)}</li>"
        for s in series
        if s.name
    )
    return f'<ul class="legend">{items}</ul>'


def line_chart(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    title: str,
    band: tuple[float, float] | None = None,
    value_text: Callable[[float], str] = "{:.4g}".format,
) -> str:
    """Return lines over two axes, with a legend.

    Args:
        series: the lines, the last on top.
        x: horizontal axis.
        y: vertical axis.
        title: what the chart shows, for readers who cannot see it.
        band: values of y between which the background is shaded.
        value_text: how hover titles write y.
    """
    frame = Frame(x, y)
    parts = []
    if band is not None:
        left, top = frame.at(x.low, min(band[1], y.high))
        right, bottom = frame.at(x.high, max(band[0], y.low))
        parts.append(
            f'<rect class="band" x="{left}" y="{top}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
    for s in series:
        pixels = [frame.at(*point) for point in s.points]
        path = "M" + "L".join(f"{px} {py}" for px, py in pixels)
        parts.append(f'<path class="line {s.style}" d="{path}"/>')
        if s.markers:
            for (px, py), (vx, vy) in zip(pixels, s.points, strict=True):
                told = escape(f"{s.name}, {x.text(vx)}: {value_text(vy)}")
                parts.append(
                    f'<g><title>{told}</title><circle class="dot {s.style}" cx="{px}" cy="{py}" '
                    f'r="3.5"/><circle class="hit" cx="{px}" cy="{py}" r="11"/></g>'
                )
    return legend(series) + frame.svg(parts, title=title)


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, x_label: str, style: str, title: str
) -> str:
    """Return a histogram over powers of ten; `shown_bins` says which part of it.

    Args:
        counts: elements of each bin.
        edges: log10 of the bins' edges, one more than bins.
        x_label: quantity and unit.
        style: class of its colour.
        title: what the chart shows.
    """
    bins = shown_bins(counts)
    if not bins:
        return f'<p class="quiet">{escape(title)}: no non-zero values.</p>'
    total = sum(counts)
    shares = [100 * count / total for count in counts]
    x = Axis(x_label, edges[bins[0]] - 0.1, edges[bins[-1] + 1] + 0.1, _power_text)
    frame = Frame(x, Axis("share of elements, %", 0.0, 1.06 * max(shares)), 380, 260)
    parts = []
    for i in bins:
        x0, top = frame.at(edges[i], shares[i])
        x1, bottom = frame.at(edges[i + 1], 0.0)
        told = escape(f"1e{edges[i]:g} to 1e{edges[i + 1]:g}: {counts[i]:,} ({shares[i]:.2g}%)")
        parts.append(
            f'<rect class="bar {style}" x="{x0 + 0.5}" y="{top}" '
            f'width="{max(x1 - x0 - 1, 0.5):.1f}" height="{bottom - top:.1f}">'
            f"<title>{told}</title></rect>"
        )
    return frame.svg(parts, title=title)


def shown_bins(counts: Sequence[int]) -> range:
    """Return the bins a histogram shows: all but tails that hold under 1 in 10,000 each."""
    cutoff = max(1, sum(counts) // 10_000)
    filled = [i for i, count in enumerate(counts) if count >= cutoff]
    return range(filled[0], filled[-1] + 1) if filled else range(0)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power_text(exponent: float) -> str:
    """Return ``10^exponent``, or nothing between whole powers."""
    if exponent != int(exponent):
        return ""
    return "10" + str(int(exponent)).translate(_SUPERSCRIPTS)


@dataclass(frozen=True)
class Bar:
    """One bar: its name, value, the value as text, and the class of its colour."""

    name: str
    value: float
    text: str
    style: str


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return horizontal bars in groups, each group scaled to its longest bar."""
    parts = []
    for name, bars in groups:
        longest = max(bar.value for bar in bars)
        rows = "".join(
            f'<div class="row" title="{escape(bar.name)}: {escape(bar.text)}">'
            f'<span class="name">{escape(bar.name)}</span><span class="track">'
            f'<span class="fill {bar.style}" style="width:{100 * bar.value / longest:.2f}%"></span>'
            f'</span><span class="value">{escape(bar.text)}</span></div>'
            for bar in bars
        )
        parts.append(f'<div class="bars"><h3>{escape(name)}</h3>{rows}</div>')
    return "".join(parts)
