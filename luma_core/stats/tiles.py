"""Walks through stored moments in tiles of bounded size, on the CPU.

Tiles are brought to the CPU still encoded and everything after is computed there, so the same
state gives the same numbers wherever it lives.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from luma_core.backends.native import native_cpu
from luma_core.codecs import BlockGrid, Codec, Fields, Tile
from luma_core.rules.base import UpdateFormula, Values
from luma_core.rules.registry import rule_of
from luma_core.state import GroupOptions, ParameterState

Progress = Callable[[int, int], None]
"""Called with the parameters that are done and their total number."""


@dataclass(frozen=True)
class MomentTile:
    """A run of elements of one moment.

    Attributes:
        codec: the moment's codec.
        fields: the stored entries of the run and of the blocks it touches, without padding.
        values: the decoded elements, float32 ``[elements]``.
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
    for tile in BlockGrid.of(shape, common).tiles() if codecs else ():
        yield tuple(replace(tile, grid=codec.grid(shape)) for codec in codecs)


def moment_tiles(*states: ParameterState) -> Iterator[tuple[dict[str, MomentTile], ...]]:
    """Yield tile after tile the moments of states of one shape, by moment name."""
    shape = states[0].shape
    keys = [(state, moment) for state in states for moment in state.moments]
    fields = [state.moment_fields(moment) for state, moment in keys]
    for tiles in joint_tiles(shape, [state.codecs[moment] for state, moment in keys]):
        read = [
            (state, moment, read_tile(state.codecs[moment], stored, tile))
            for (state, moment), stored, tile in zip(keys, fields, tiles, strict=True)
        ]
        yield tuple(
            {moment: part for owner, moment, part in read if owner is state} for state in states
        )


def read_tile(
    codec: Codec, fields: Mapping[str, Tensor], tile: Tile, scratch: Tensor | None = None
) -> MomentTile:
    """Return a tile of one moment; its fields may lie on any device and in any memory order.

    Args:
        codec: the moment's codec.
        fields: its stored tensors.
        tile: the run of elements.
        scratch: float32 memory of at least the tile's elements that the values may take, until
            it is used again. Memory that is new for each tile costs more than decoding.
    """
    cpu = native_cpu() if codec.tiled else None
    if cpu is not None:
        # Its blocks are those of a tensor of its own; a single row is flat.
        shape = (tile.rows, tile.cols) if tile.rows > 1 else (tile.cols,)
        out = None if scratch is None else scratch[: tile.numel].view(shape)
        parts = _parts(codec, fields, tile, shape)
        # Tiles are shared out to threads by those who ask for them.
        decoded: Tensor | None = cpu.decode(codec, parts, shape, out=out, threads=1)
        if decoded is not None:
            flat = {name: part.view(-1) for name, part in parts.items()}
            return MomentTile(codec, flat, decoded.view(-1).numpy())
    stored = {name: part.detach().cpu() for name, part in codec.read_tile(fields, tile).items()}
    specs = codec.layout(tile.grid.shape)
    flat = {
        name: tile.unblocked(part) if specs[name].entries_per_block is None else part
        for name, part in stored.items()
    }
    return MomentTile(codec, flat, tile.unblocked(codec.decode(stored)).contiguous().numpy())


def _parts(
    codec: Codec, fields: Mapping[str, Tensor], tile: Tile, shape: tuple[int, ...]
) -> Fields:
    """Return the stored entries of a tile as those of a tensor of ``shape``, on the CPU."""
    parts = {}
    for name, spec in codec.layout(shape).items():
        field = fields[name]
        if spec.entries_per_block is not None:
            part = tile.read_blocks(field)
        elif field.is_contiguous():
            part = field.view(-1)[tile.start : tile.start + tile.numel]
        else:
            part = tile.unblocked(tile.read(field))
        parts[name] = part.detach().cpu().reshape(spec.shape)
    return parts


def update_formula(
    algorithm: str, state: ParameterState, groups: Sequence[GroupOptions]
) -> UpdateFormula | None:
    """Return the update formula of a parameter; ``None`` where its state has no such update."""
    rule = rule_of(algorithm)
    found = None if rule is None else rule.update_formula(groups[state.group], state.step)
    return found if found is not None and set(found.moments) <= state.codecs.keys() else None
