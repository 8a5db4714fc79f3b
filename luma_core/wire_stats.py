"""What the server tells of statistics beside those of `luma_core.stats`, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luma_core.stats import StateDiff


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
    """

    elements: int
    nonfinite: int
    rms: float | None
    max: float | None
    zero_share: float | None
    saturated_share: float | None
    histogram: tuple[int, ...]


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


@dataclass(frozen=True)
class ModuleList:
    """Statistics by module.

    Attributes:
        depth: how many parts of a parameter's name make its module.
        items: in the order of the checkpoint's parameters.
    """

    depth: int
    items: tuple[ModuleStats, ...]


@dataclass(frozen=True)
class SeriesPoint:
    """One checkpoint of a series.

    Attributes:
        step: its name.
        optimizer_step: completed steps; ``None`` where its manifest cannot be read.
        value: of the metric; ``None`` where it has none or is not known yet.
        state: ``pending`` while it is computed, ``failed`` where the checkpoint cannot be read.
    """

    step: str
    optimizer_step: int | None
    value: float | None
    state: Literal["done", "pending", "failed"]


@dataclass(frozen=True)
class Series:
    """One number over the checkpoints of a run.

    Attributes:
        run: the run.
        metric: what is measured.
        items: by step.
    """

    run: str
    metric: str
    items: tuple[SeriesPoint, ...]


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints side by side.

    Attributes:
        a: the first, ``run/step``; errors are relative to its values.
        b: the second.
        cosine_update: cosine of the angle between all updates of ``a`` and of ``b``; ``None``
            where one is zero, not finite or not compared.
        difference: everything else.
    """

    a: str
    b: str
    cosine_update: float | None
    difference: StateDiff
