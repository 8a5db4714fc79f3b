"""The numbers of a checkpoint that series are made of: of every module and every parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luma_core.lazy import import_later
from luma_core.stats import METRICS, CheckpointStats, ParameterStats, together

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = import_later("numpy", globals())

_KEY_BYTES = 160
"""About what a name and its place in a dictionary take, beside the name's characters."""


@dataclass(frozen=True)
class Wanted:
    """What a series shows.

    Attributes:
        metric: one of `luma_core.stats.METRICS`.
        param: of this parameter; ``None`` for ``module``.
        module: of all parameters inside; ``None`` for all there are.
    """

    metric: str
    param: str | None
    module: str | None


class Numbers:
    """All `METRICS` of a checkpoint's parameters and modules.

    Args:
        report: statistics of every parameter.
    """

    def __init__(self, report: CheckpointStats) -> None:
        groups: dict[str, list[ParameterStats]] = {"": list(report.parameters)}
        for one in report.parameters:
            at = 0
            while at >= 0:
                at = one.name.find(".", at + 1)
                groups.setdefault(one.name if at < 0 else one.name[:at], []).append(one)
        rows = list(groups.items())
        self._modules = {name: row for row, (name, _) in enumerate(rows)}
        self._parameters: dict[str, int] = {}
        for one in report.parameters:
            if len(groups[one.name]) > 1:
                rows.append((one.name, [one]))
                self._parameters[one.name] = len(rows) - 1
            else:
                self._parameters[one.name] = self._modules[one.name]
        self._table = np.array([_row(parameters) for _, parameters in rows])

    @property
    def size_bytes(self) -> int:
        """About how much memory this takes."""
        names = sum(len(name) + _KEY_BYTES for name in (*self._modules, *self._parameters))
        return self._table.nbytes + names

    def get(self, wanted: Wanted) -> float | None:
        """Return a number; ``None`` where the checkpoint has no such thing."""
        if wanted.param is not None:
            row = self._parameters.get(wanted.param)
        else:
            row = self._modules.get(wanted.module or "")
        if row is None:
            return None
        value = float(self._table[row, METRICS.index(wanted.metric)])
        return None if math.isnan(value) else value


def _row(parameters: list[ParameterStats]) -> npt.NDArray[np.float64]:
    stats = together("", parameters)
    found = [stats.metric(name) for name in METRICS]
    return np.array([math.nan if value is None else value for value in found])
