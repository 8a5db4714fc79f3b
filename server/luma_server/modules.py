"""Statistics of several parameters together, from those of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from luma_core.stats import CheckpointStats, MomentStats, ParameterStats, QuantityStats
from luma_core.wire_stats import ModuleList, ModuleStats, QuantitySummary
from luma_server.problems import ApiError

SHARES = ("zero_share", "saturated_share")
MAGNITUDES = ("rms", "max")
TOTALS = ("parameters", "elements", "state_bytes", "bits_per_parameter", "nonfinite")
MOMENTS = ("exp_avg", "exp_avg_sq")

METRICS = (
    *TOTALS,
    *(f"update.{name}" for name in MAGNITUDES),
    *(f"{moment}.{name}" for moment in MOMENTS for name in (*MAGNITUDES, *SHARES)),
)
"""What a series can be made of."""


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
    scale = max((rms for _, rms in squares), default=0.0)
    mean = sum(count * (rms / scale) ** 2 for count, rms in squares) / finite if scale else 0.0
    largest = [one.max for one in values if one.max is not None]
    return QuantitySummary(
        elements=sum(one.elements for one in values),
        nonfinite=sum(one.nonfinite for one in values),
        rms=scale * math.sqrt(mean) if finite else None,
        max=max(largest) if largest else None,
        zero_share=_share((one.value.elements, one.zero_share) for one in moments),
        saturated_share=_share((one.value.elements, one.saturated_share) for one in moments),
        histogram=tuple(map(sum, zip(*(one.histogram.counts for one in values), strict=True))),
    )


def _share(shares: Iterable[tuple[int, float | None]]) -> float | None:
    known = [(count, share) for count, share in shares if share is not None]
    total = sum(count for count, _ in known)
    return sum(count * share for count, share in known) / total if total else None


def pick(stats: ModuleStats, metric: str) -> float | None:
    """Return one of `METRICS`; ``None`` where there is no such value.

    Raises:
        ApiError: there is no such metric.
    """
    if metric not in METRICS:
        raise ApiError(
            "invalid_request",
            f"query.metric: {metric[:100]!r} is not known.",
            hint=f"One of {', '.join(METRICS)}.",
        )
    if metric in TOTALS:
        value: float | None = getattr(stats, metric)
        return value
    quantity, name = metric.split(".")
    summary = stats.update if quantity == "update" else stats.moments.get(quantity)
    if summary is None:
        return None
    found: float | None = getattr(summary, name)
    return found
