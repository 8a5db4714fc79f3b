"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Sequence

DASH = "-"
"""Stands for a value that does not exist."""


def bytes_text(count: int) -> str:
    """Return a size in decimal units: ``13.4 MB``."""
    if count < 1000:
        return f"{count} B"
    size, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 99.95 else f"{size:.0f} {units[0]}"


def number(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with significant digits."""
    return DASH if value is None else f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 3) -> str:
    """Return a share as a percentage with significant digits."""
    return DASH if value is None else f"{100 * value:.{digits}g}%"


def signed_percent(value: float) -> str:
    """Return a difference as a percentage with its sign and two significant digits."""
    return f"{100 * value:+.2g}%"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape: ``768 x 3072``; ``scalar`` without dimensions."""
    return " x ".join(map(str, shape)) or "scalar"
