"""Statistics of one optimizer state, parameter by parameter and in total."""

from __future__ import annotations

import math
from contextlib import closing

from luma_core.rules.base import Values
from luma_core.state import ParameterState, StateSource
from luma_core.stats.accumulate import Moment, Quantity
from luma_core.stats.report import CheckpointStats, ParameterStats, ScaleStats, TotalStats
from luma_core.stats.scales import Scales, block_scales, scale_stats
from luma_core.stats.tiles import Progress, choose
from luma_core.stats.walk import Measured, walk


def compute(
    source: StateSource, *, pattern: str | None = None, progress: Progress | None = None
) -> CheckpointStats:
    """Measure an optimizer's state.

    Parameters are read one after another and worked through in tiles of bounded size, on the
    CPU, so a live optimizer and the checkpoint saved from it give exactly the same numbers,
    whatever the number of threads, which is torch's. Beside what the source holds, memory is
    bounded by one parameter or 192 MiB of them, whichever is more.

    Args:
        source: an optimizer or an opened checkpoint.
        pattern: shell pattern that chooses parameters by name; ``None`` takes all.
        progress: called with the number of parameters done and chosen, after each of them.

    Raises:
        CheckpointError: the source is a checkpoint that cannot be read.
    """
    names = choose(source.parameter_names(), pattern)
    total = _Total()
    parameters = []
    with closing(walk(source, names, source.group_options())) as found:
        for done, measured in enumerate(found, start=1):
            parameters.append(_parameter(measured, total))
            if progress is not None:
                progress(done, len(names))
    return CheckpointStats(total=total.result(parameters), parameters=tuple(parameters))


def state_bytes(state: ParameterState) -> int:
    """Return the bytes of all persistent tensors of a parameter's state; 0 without state."""
    if not state.fields:
        return 0
    return state.counter_bytes + sum(tensor.nbytes for tensor in state.fields.values())


def bits_per_parameter(bytes_: int, elements: int) -> float | None:
    """Return ``8 * bytes_ / elements``, or ``None`` without elements."""
    return 8 * bytes_ / elements if elements else None


class _Total:
    """What the parameters add up to."""

    def __init__(self) -> None:
        self.update = Quantity()
        self.moments: dict[str, Moment] = {}
        self.scales: dict[str, Scales] = {}

    def add(self, moment: Moment, scale: Values | None, exact: ScaleStats | None) -> None:
        self.moments.setdefault(moment.name, Moment(moment.name)).merge(moment)
        if scale is not None and exact is not None:
            self.scales.setdefault(moment.name, Scales()).add(scale, exact)

    def result(self, parameters: list[ParameterStats]) -> TotalStats:
        elements = sum(entry.elements for entry in parameters)
        bytes_ = sum(entry.state_bytes for entry in parameters)
        return TotalStats(
            parameters=len(parameters),
            parameters_without_state=sum(not entry.state_bytes for entry in parameters),
            elements=elements,
            step=max((entry.step for entry in parameters), default=0),
            nonfinite=sum(entry.nonfinite for entry in parameters),
            state_bytes=bytes_,
            bits_per_parameter=bits_per_parameter(bytes_, elements),
            update=self.update.result(),
            moments=tuple(
                moment.result(self.scales[name].result() if name in self.scales else None)
                for name, moment in self.moments.items()
            ),
        )


def _parameter(measured: Measured, total: _Total) -> ParameterStats:
    state, update = measured.state, Quantity()
    moments = {name: Moment(name, codec.name) for name, codec in state.moments.items()}
    for run in measured.runs:
        update.merge(run.update)
        for name, part in run.moments.items():
            moments[name].add(part)
    scales = {
        name: block_scales(codec, measured.fields[name], state.shape)
        for name, codec in state.moments.items()
    }
    exact = {name: None if s is None else scale_stats(s) for name, s in scales.items()}
    for name, moment in moments.items():
        total.add(moment, scales[name], exact[name])
    total.update.merge(update)
    elements = math.prod(state.shape)
    bytes_ = state_bytes(state)
    return ParameterStats(
        name=state.name,
        shape=state.shape,
        dtype=state.dtype,
        group=state.group,
        elements=elements,
        step=state.step,
        nonfinite=state.nonfinite,
        state_bytes=bytes_,
        bits_per_parameter=bits_per_parameter(bytes_, elements),
        update=update.result(),
        moments=tuple(moment.result(exact[name]) for name, moment in moments.items()),
    )
