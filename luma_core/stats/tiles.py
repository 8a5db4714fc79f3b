"""Walks through stored moments in tiles of bounded size, on the CPU.

Tiles are brought to the CPU still encoded and everything after is computed there, so the same
state gives the same numbers wherever it lives.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from luma_core.codecs import BlockGrid, Codec, Fields, Tile
from luma_core.state import GroupOptions, ParameterState

Values = npt.NDArray[np.float64]

Progress = Callable[[int, int], None]
"""Called with the parameters that are done and their total number."""

FIRST_MOMENT = "exp_avg"
SECOND_MOMENT = "exp_avg_sq"


@dataclass(frozen=True)
class MomentTile:
    """A run of elements of one moment.

    Attributes:
        codec: the moment's codec.
        fields: the stored entries of the run and of the blocks it touches, without padding.
        values: the decoded elements, float64 ``[elements]``.
    """

    codec: Codec
    fields: Fields
    values: Values

    @property
    def codes(self) -> Tensor | None:
        """The stored codes ``[elements]``, or ``None`` for codecs without a code grid."""
        return None if self.codec.top_code is None else self.fields["codes"]


def choose(names: Sequence[str], pattern: str | None) -> list[str]:
    """Return the names that match a shell pattern, case counting; all of them for ``None``."""
    return [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def joint_tiles(shape: tuple[int, ...], codecs: Sequence[Codec]) -> Iterator[tuple[Tile, ...]]:
    """Cut a tensor so that no codec's block is cut: one tile per codec, of the same elements."""
    sizes = [codec.block_size for codec in codecs if codec.block_size is not None]
    common = math.lcm(*sizes) if sizes else None
    for tile in BlockGrid.of(shape, common).tiles():
        yield tuple(replace(tile, grid=codec.grid(shape)) for codec in codecs)


def moment_tiles(*states: ParameterState) -> Iterator[tuple[dict[str, MomentTile], ...]]:
    """Yield tile after tile the moments of states of one shape, by moment name."""
    shape = states[0].shape
    keys = [(state, moment) for state in states for moment in state.codecs]
    fields = [state.moment_fields(moment) for state, moment in keys]
    for tiles in joint_tiles(shape, [state.codecs[moment] for state, moment in keys]):
        read = [
            (state, moment, _read(state.codecs[moment], stored, tile))
            for (state, moment), stored, tile in zip(keys, fields, tiles, strict=True)
        ]
        yield tuple(
            {moment: part for owner, moment, part in read if owner is state} for state in states
        )


def _read(codec: Codec, fields: Mapping[str, Tensor], tile: Tile) -> MomentTile:
    stored = {name: part.detach().cpu() for name, part in codec.read_tile(fields, tile).items()}
    values = tile.unblocked(codec.decode(stored)).double().numpy()
    specs = codec.layout(tile.grid.shape)
    flat = {
        name: tile.unblocked(part) if specs[name].entries_per_block is None else part
        for name, part in stored.items()
    }
    return MomentTile(codec, flat, values)


@dataclass(frozen=True)
class UpdateRule:
    """``m_hat / (sqrt(v_hat) + eps)`` of one parameter.

    Attributes:
        correction1: ``1 - beta1**step``.
        correction2: ``1 - beta2**step``.
        eps: added to the root.
    """

    correction1: float
    correction2: float
    eps: float

    @classmethod
    def of(cls, state: ParameterState, groups: Sequence[GroupOptions]) -> UpdateRule | None:
        """Return the rule of a parameter; ``None`` where its state has no such update."""
        options: Mapping[str, Any] = groups[state.group]
        if not {FIRST_MOMENT, SECOND_MOMENT} <= state.codecs.keys() or not (
            {"betas", "eps"} <= options.keys()
        ):
            return None
        # Before the first step nothing is biased yet, and the formula would divide by zero.
        step = state.step if state.step > 0 else math.inf
        beta1, beta2 = options["betas"]
        return cls(1.0 - beta1**step, 1.0 - beta2**step, float(options["eps"]))

    def apply(self, tile: Mapping[str, MomentTile]) -> Values:
        """Return the update of a tile, float64 ``[elements]``; NaN and infinity pass through."""
        with np.errstate(all="ignore"):
            root = np.sqrt(tile[SECOND_MOMENT].values / self.correction2)
            update: Values = tile[FIRST_MOMENT].values / self.correction1 / (root + self.eps)
        return update
