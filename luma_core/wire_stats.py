"""What the server tells of statistics beside those of `luma_core.stats`, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luma_core.stats import StateDiff


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
