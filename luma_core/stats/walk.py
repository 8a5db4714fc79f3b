"""Measures parameter after parameter on a few threads, and reads the next ones meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from luma_core.backends.native import native_cpu
from luma_core.codecs import Fields, Tile
from luma_core.rules.base import UpdateFormula
from luma_core.state import GroupOptions, ParameterState, StateSource
from luma_core.stats.accumulate import MomentRun, Quantity
from luma_core.stats.measure import measure_update
from luma_core.stats.tiles import joint_tiles, read_tile, update_formula

READ_AHEAD_BYTES = 192 << 20
"""Bound on the stored bytes of the parameters that are read and measured at once; one at least."""

_AHEAD = 16
_RUN_TILES = 16


@dataclass(frozen=True)
class Run:
    """Some tiles of one parameter, measured.

    Attributes:
        update: as the rule's `update_formula` has it; empty where there is none.
        moments: by name.
    """

    update: Quantity
    moments: dict[str, MomentRun]


@dataclass(frozen=True)
class Measured:
    """One parameter.

    Attributes:
        state: its state.
        fields: its stored tensors, by moment.
        runs: all of its tiles.
    """

    state: ParameterState
    fields: dict[str, Fields]
    runs: tuple[Run, ...]


def walk(
    source: StateSource, names: Sequence[str], groups: Sequence[GroupOptions]
) -> Generator[Measured, None, None]:
    """Yield each parameter once it is measured, in the order of ``names``.

    Threads are as many as torch's, and one that reads; what is added up does not depend on their
    number. Without the native library it is one, and PyTorch shares out its own work.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="luma-stats-read")
    threads = 1 if native_cpu() is None else torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="luma-stats")
    started: deque[_Started] = deque()
    try:
        for name in names:
            state = source.parameter_state(name)
            size = _stored_bytes(state)
            while started and (
                len(started) == _AHEAD
                or size + sum(one.bytes for one in started) > READ_AHEAD_BYTES
            ):
                yield started.popleft().result()
            formula = update_formula(source.algorithm, state, groups)
            started.append(_Started(state, formula, size, reader, pool))
        while started:
            yield started.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)
        pool.shutdown(cancel_futures=True)


class _Started:
    def __init__(
        self,
        state: ParameterState,
        formula: UpdateFormula | None,
        size: int,
        reader: ThreadPoolExecutor,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.bytes = size
        self._pool = pool
        self._state = state
        self._formula = formula
        self._fields: dict[str, Fields] = {}
        self._read = reader.submit(self._start)

    def _start(self) -> list[Future[Run]]:
        state = self._state
        self._fields = {moment: state.moment_fields(moment) for moment in state.moments}
        tiles = list(joint_tiles(state.shape, list(state.moments.values())))
        # A run holds counts of all codes, so a huge parameter must not have very many.
        size = max(_RUN_TILES, math.ceil(len(tiles) / (4 * torch.get_num_threads())))
        return [
            self._pool.submit(self._run, tiles[start : start + size])
            for start in range(0, len(tiles), size)
        ]

    def _run(self, tiles: Sequence[tuple[Tile, ...]]) -> Run:
        codecs = self._state.moments
        run = Run(Quantity(), {moment: MomentRun(codec) for moment, codec in codecs.items()})
        largest = max(cuts[0].numel for cuts in tiles)
        scratch = {moment: torch.empty(largest, device="cpu") for moment in codecs}
        for cuts in tiles:
            read = {
                moment: read_tile(codec, self._fields[moment], cut, scratch[moment])
                for (moment, codec), cut in zip(codecs.items(), cuts, strict=True)
            }
            for moment, part in read.items():
                run.moments[moment].add(part)
            if self._formula is not None:
                values = [read[moment].values for moment in self._formula.moments]
                run.update.add(measure_update(self._formula, values))
        return run

    def result(self) -> Measured:
        runs = tuple(run.result() for run in self._read.result())
        return Measured(self._state, self._fields, runs)


def _stored_bytes(state: ParameterState) -> int:
    return sum(
        math.prod(spec.shape) * spec.dtype.itemsize
        for codec in state.codecs.values()
        for spec in codec.layout(state.shape).values()
    )
