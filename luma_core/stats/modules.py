"""Statistics of several parameters together, from those of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luma_core.errors import ConfigurationError
from luma_core.stats.report import (
    CheckpointStats,
    MomentStats,
    ParameterStats,
    QuantityStats,
    ScaleHistogram,
    ScaleStats,
)

_SHARES = ("zero_share", "saturated_share")
_MAGNITUDES = ("rms", "max")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_TOTALS = ("parameters", "elements", "state_bytes", "bits_per_parameter", "nonfinite")

METRICS = (
    *_TOTALS,
    *(f"update.{name}" for name in _MAGNITUDES),
    *(f"{moment}.{name}" for moment in _MOMENTS for name in (*_MAGNITUDES, *_SHARES)),
)
"""Names of the numbers that `ModuleStats.metric` knows."""


@dataclass(frozen=True)
class ScaleSummary:
    """The block scales of one moment over several parameters.

    Attributes:
        blocks: number of scales.
        nonfinite: NaN and infinite ones among them; left out of the rest.
        min: smallest scale; ``None`` without a finite one.
        max: largest scale; ``None`` without a finite one.
        histogram: finite scales by power of two.
    """

    blocks: int
    nonfinite: int
    min: float | None
    max: float | None
    histogram: ScaleHistogram


@dataclass(frozen=True)
class QuantitySummary:
    """Magnitudes of one quantity over several parameters.

    Attributes:
        elements: elements looked at.
        nonfinite: NaN and infinite ones among them.
        rms: root of the mean square; ``None`` without a finite element.
        max: largest magnitude; ``None`` without a finite element.
        zero_share: share of zero codes or values; ``None`` without elements, and for updates.
        saturated_share: share of codes at the end of the grid; ``None`` where there are no codes.
        histogram: counts by powers of ten, as in `luma_core.stats.Histogram`.
        scale: the block scales; ``None`` where there are none, and for updates.
    """

    elements: int
    nonfinite: int
    rms: float | None
    max: float | None
    zero_share: float | None
    saturated_share: float | None
    histogram: tuple[int, ...]
    scale: ScaleSummary | None


@dataclass(frozen=True)
class ModuleStats:
    """The parameters whose names begin with the same parts.

    Attributes:
        module: those parts, joined by dots.
        parameters: how many parameters.
        elements: their elements.
        state_bytes: bytes of their state tensors.
        bits_per_parameter: ``8 * state_bytes / elements``; ``None`` without elements.
        nonfinite: blocks left out so far because their update was not finite.
        update: ``m_hat / (sqrt(v_hat) + eps)``.
        moments: by name of the moment.
    """

    module: str
    parameters: int
    elements: int
    state_bytes: int
    bits_per_parameter: float | None
    nonfinite: int
    update: QuantitySummary
    moments: dict[str, QuantitySummary]

    def metric(self, name: str) -> float | None:
        """Return one of `METRICS`; ``None`` where there is no such value.

        Raises:
            ConfigurationError: there is no such metric.
        """
        if name not in METRICS:
            raise ConfigurationError(
                f"metric={name[:100]!r} is not known.", hint=f"One of {', '.join(METRICS)}."
            )
        if name in _TOTALS:
            value: float | None = getattr(self, name)
            return value
        quantity, field = name.split(".")
        summary = self.update if quantity == "update" else self.moments.get(quantity)
        found: float | None = None if summary is None else getattr(summary, field)
        return found


@dataclass(frozen=True)
class ModuleList:
    """Statistics by module.

    Attributes:
        depth: how many parts of a parameter's name make its module.
        items: in the order of the checkpoint's parameters.
    """

    depth: int
    items: tuple[ModuleStats, ...]


def module_of(parameter: str, depth: int) -> str:
    """Return the first parts of a parameter's name, never its last one unless it is the only."""
    parts = parameter.split(".")
    return ".".join(parts[: min(depth, max(1, len(parts) - 1))])


def by_module(report: CheckpointStats, depth: int) -> ModuleList:
    """Return statistics by the first parts of parameter names.

    Args:
        report: statistics of every parameter.
        depth: how many parts, 1 or more.
    """
    groups: dict[str, list[ParameterStats]] = {}
    for parameter in report.parameters:
        groups.setdefault(module_of(parameter.name, depth), []).append(parameter)
    return ModuleList(depth, tuple(together(name, found) for name, found in groups.items()))


def within(report: CheckpointStats, module: str) -> list[ParameterStats]:
    """Return the parameters inside a module, or of that very name."""
    return [
        one for one in report.parameters if one.name == module or one.name.startswith(f"{module}.")
    ]


def together(module: str, parameters: Sequence[ParameterStats]) -> ModuleStats:
    """Return what parameters add up to.

    The rms of several is the root of their mean square, weighted by finite elements; shares are
    weighted by elements.
    """
    elements = sum(one.elements for one in parameters)
    state_bytes = sum(one.state_bytes for one in parameters)
    moments: dict[str, list[MomentStats]] = {}
    for one in parameters:
        for moment in one.moments:
            moments.setdefault(moment.moment, []).append(moment)
    return ModuleStats(
        module=module,
        parameters=len(parameters),
        elements=elements,
        state_bytes=state_bytes,
        bits_per_parameter=8 * state_bytes / elements if elements else None,
        nonfinite=sum(one.nonfinite for one in parameters),
        update=_summary([one.update for one in parameters]),
        moments={
            name: _summary([one.value for one in found], found) for name, found in moments.items()
        },
    )


def _summary(
    values: Sequence[QuantityStats], moments: Sequence[MomentStats] = ()
) -> QuantitySummary:
    squares = [(one.elements - one.nonfinite, one.rms) for one in values if one.rms is not None]
    finite = sum(count for count, _ in squares)
    # Scaled by the largest, as squares of small moments would vanish.
    unit = max((rms for _, rms in squares), default=0.0)
    mean = sum(count * (rms / unit) ** 2 for count, rms in squares) / finite if unit else 0.0
    return QuantitySummary(
        elements=sum(one.elements for one in values),
        nonfinite=sum(one.nonfinite for one in values),
        rms=unit * math.sqrt(mean) if finite else None,
        max=max((one.max for one in values if one.max is not None), default=None),
        zero_share=_share((one.value.elements, one.zero_share) for one in moments),
        saturated_share=_share((one.value.elements, one.saturated_share) for one in moments),
        histogram=tuple(map(sum, zip(*(one.histogram.counts for one in values), strict=True))),
        scale=_scales([one.scale for one in moments if one.scale is not None]),
    )


def _share(shares: Iterable[tuple[int, float | None]]) -> float | None:
    known = [(count, share) for count, share in shares if share is not None]
    total = sum(count for count, _ in known)
    return sum(count * share for count, share in known) / total if total else None


def _scales(scales: Sequence[ScaleStats]) -> ScaleSummary | None:
    if not scales:
        return None
    from luma_core.stats.scales import ScaleCounts

    counts = ScaleCounts()
    for one in scales:
        counts.merge(one.histogram)
    return ScaleSummary(
        blocks=sum(one.blocks for one in scales),
        nonfinite=sum(one.nonfinite for one in scales),
        min=min((one.min for one in scales if one.min is not None), default=None),
        max=max((one.max for one in scales if one.max is not None), default=None),
        histogram=counts.result(),
    )
