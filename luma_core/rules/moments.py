"""The part of a step that many rules share: new moments, element by element, coded and stored."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Fields, Tile
from luma_core.rules.base import MomentSpec, ParameterStep, Reduction

MomentUpdate = Callable[
    [Tensor, Mapping[str, Tensor], Any], tuple[dict[str, Tensor], Tensor | None]
]
"""New float32 moments from a gradient, the old moments and the rule's numbers, and the update that
they make, of rules that make it of moments before they are coded."""


GradientOf = Callable[[Tensor, Callable[[], Tensor], Any], Tensor]
"""What a rule takes for the gradient: of it, what reads the parameter, and the rule's numbers."""


@dataclass(frozen=True)
class StoredTile:
    """A tile whose new moments were stored.

    Attributes:
        tile: where it lies.
        update: the update, float32 ``[rows, blocks, block_size]``; ``None`` where the rule makes
            none of moments before they are coded.
        fields: the fields of each moment as they are stored now, by name.
        keep: bool, broadcast to the tile: false where a block was left untouched; ``None`` where
            none can be.
        param_draw: 16 random bits per element that round the parameter, or ``None``.
    """

    tile: Tile
    update: Tensor | None
    fields: Mapping[str, Fields]
    keep: Tensor | None
    param_draw: Tensor | None


class MomentPass:
    """Updates and stores the moments of one parameter, tile by tile; its codecs share block sizes.

    Iterating does the work, once `measured` has run. With one scale per tensor that is a first
    pass that finds the scales, which are stored after the last tile, since until then they decode
    the old moments.

    Attributes:
        bad: int64 0-d: blocks whose new moments were not finite, once iteration has ended.
    """

    def __init__(
        self,
        specs: Sequence[MomentSpec],
        update: MomentUpdate,
        item: ParameterStep,
        *,
        gradient: GradientOf | None = None,
    ) -> None:
        self._streams = {spec.name: spec.stream for spec in specs}
        self._divisors = {
            spec.name: spec.divided_by
            for spec in specs
            if spec.divided_by and item.moments[spec.divided_by].codec.relative
        }
        self._update = update
        self._gradient = gradient
        self._item = item
        self.bad = torch.zeros((), dtype=torch.int64, device=item.param.device)
        self._scales: dict[str, Fields] = {}
        self._finite = torch.ones((), dtype=torch.bool, device=item.param.device)

    @property
    def _blocked(self) -> bool:
        return next(iter(self._item.moments.values())).codec.block_size is not None

    def measured(self) -> Generator[Reduction, Tensor, None]:
        """Find the scales of tensors with one each; see `Rule.stages`."""
        if not self._blocked:
            yield from self._fit_tensor()

    def __iter__(self) -> Iterator[StoredTile]:
        item = self._item
        if self._blocked:
            for tile, new, update in self._new_moments():
                finite = _finite(new).all(dim=-1, keepdim=True)
                self.bad += (~finite).sum()
                keep = finite if item.skip_nonfinite else None
                yield self._stored(tile, new, update, {}, keep)
            return
        self.bad += ~self._finite
        keep = self._finite.reshape(1, 1, 1) if item.skip_nonfinite else None
        for tile, new, update in self._new_moments():
            yield self._stored(tile, new, update, self._scales, keep)
        self._store_scales(self._scales, keep)

    def _new_moments(self) -> Iterator[tuple[Tile, dict[str, Tensor], Tensor | None]]:
        item = self._item
        # Codecs that pack store short blocks at full length, beside others that do not.
        grids = [stored.codec.grid(item.param.shape) for stored in item.moments.values()]
        for tile in max(grids, key=lambda grid: grid.block_size or 0).tiles():
            grad = tile.read(item.grad).float()
            if item.grad_factor is not None:
                grad = grad * item.grad_factor
            if self._gradient is not None:
                grad = self._gradient(grad, partial(_read_param, item, tile), item.hyper)
            old = {
                name: stored.codec.decode(stored.codec.read_tile(stored.fields, tile))
                for name, stored in item.moments.items()
            }
            yield tile, *self._update(grad, old, item.hyper)

    def _fit_tensor(self) -> Generator[Reduction, Tensor, None]:
        """Find the new scales of a tensor with one each, and whether all is finite."""
        nothing = torch.zeros(1, 1, 1, device=self.bad.device)
        fits = {name: stored.codec.fit(nothing) for name, stored in self._item.moments.items()}
        for _, new, _ in self._new_moments():
            self._finite &= _finite(new).all()
            for name, value in new.items():
                codec = self._item.moments[name].codec
                fits[name] = codec.merge(fits[name], codec.fit(value.reshape(1, 1, -1)))
        found = [value for fit in fits.values() for value in fit.values()]
        reduced = yield largest([~self._finite, *found])
        self._finite = reduced[0] == 0
        values = iter(split_like(reduced[1:], found))
        self._scales = {name: {key: next(values) for key in fit} for name, fit in fits.items()}

    def _stored(
        self,
        tile: Tile,
        new: Mapping[str, Tensor],
        update: Tensor | None,
        scales: Mapping[str, Fields],
        keep: Tensor | None,
    ) -> StoredTile:
        """Code and store a tile's new moments; ``scales`` are those of tensors with one each."""
        draws = _draws(self._item, tile, self._streams)
        fields = {}
        for name, moment in new.items():
            value, stored = moment, self._item.moments[name]
            fitted = scales.get(name)
            old = stored.codec.read_tile(stored.fields, tile)
            own = stored.codec.refit(moment, old) if fitted is None else {}
            scale = own if fitted is None else fitted
            if name in self._divisors:
                root = new[self._divisors[name]].sqrt()
                value = stored.codec.round_down_below(value, scale, root)
            coded = stored.codec.encode(value, scale, draws[name])
            values = {**scale, **coded}
            if keep is not None:
                values = {key: torch.where(keep, value, old[key]) for key, value in values.items()}
            written = {key: values[key] for key in (*own, *coded)}
            stored.codec.write_tile(stored.fields, tile, written)
            fields[name] = values
        return StoredTile(tile, update, fields, keep, draws[""])

    def _store_scales(self, scales: Mapping[str, Fields], keep: Tensor | None) -> None:
        for name, fitted in scales.items():
            fields = self._item.moments[name].fields
            for key, value in fitted.items():
                stored = fields[key]
                value = value.reshape(stored.shape)
                if keep is not None:
                    value = torch.where(keep.view(()), value, stored)
                stored.copy_(value)


def _read_param(item: ParameterStep, tile: Tile) -> Tensor:
    return tile.read(item.param).float()


def largest(values: Sequence[Tensor]) -> Reduction:
    """Return the reduction to the largest of each element of some tensors."""
    return Reduction(torch.cat([value.reshape(-1).double() for value in values]), "max")


def split_like(values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return consecutive values in the shapes and dtypes of ``tensors``."""
    pieces = values.split([tensor.numel() for tensor in tensors])
    return [
        piece.view(tensor.shape).to(tensor.dtype)
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]


def write_parameter(
    item: ParameterStep, tile: Tile, param: Tensor, keep: Tensor | None, draw: Tensor | None
) -> None:
    """Round a tile's new parameter to its dtype and write it.

    Args:
        item: the step.
        tile: where it lies.
        param: float32 ``[rows, blocks, block_size]``.
        keep: false where the parameter stays as it is.
        draw: 16 random bits per element for bfloat16; ``None`` rounds to nearest.
    """
    dtype = item.param.dtype
    if dtype == torch.bfloat16:
        param = rounding.to_bfloat16(param, draw)
    param = param.to(dtype)
    tile.write(
        item.param, param if keep is None else torch.where(keep, param, tile.read(item.param))
    )


def param_draw(item: ParameterStep, tile: Tile) -> Tensor | None:
    """Return the 16 random bits per element for a tile of the parameter, if they round it."""
    if item.param.dtype != torch.bfloat16 or not item.stochastic_rounding:
        return None
    return rounding.third_draw(random_bits(item, tile))


def random_bits(item: ParameterStep, tile: Tile, word: int = 0) -> Tensor:
    """Return 32 random bits for each element of a tile, int32, blocked."""
    return tile.blocked(item.random_bits(tile.start, tile.numel, word))


def _draws(item: ParameterStep, tile: Tile, streams: Mapping[str, int]) -> dict[str, Tensor | None]:
    """Return the 16-bit draws of each moment, and under ``""`` those of the parameter."""
    rounds_param = item.param.dtype == torch.bfloat16 and item.stochastic_rounding
    draws: dict[str, Tensor | None] = dict.fromkeys((*item.moments, ""))
    if not rounds_param and not any(s.codec.rounds for s in item.moments.values()):
        return draws
    words: dict[int, Tensor] = {}
    for name, stored in item.moments.items():
        if stored.codec.rounds:
            word = rounding.word_of(streams[name])
            if word not in words:
                words[word] = random_bits(item, tile, word)
            draws[name] = rounding.draw_stream(words[word], streams[name])
    if rounds_param:
        bits = words[0] if 0 in words else random_bits(item, tile)
        draws[""] = rounding.third_draw(bits)
    return draws


def _finite(moments: Mapping[str, Tensor]) -> Tensor:
    finite: Tensor | None = None
    for value in moments.values():
        this = torch.isfinite(value)
        finite = this if finite is None else finite.logical_and_(this)
    assert finite is not None
    return finite
