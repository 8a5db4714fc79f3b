"""The Adam-mini rule (Zhang et al., 2024, algorithm 1): AdamW with one second moment per segment.

m  = beta1 * m + (1 - beta1) * g
v  = beta2 * v + (1 - beta2) * mean(g**2)             the mean over the segment, a Hessian block
p  = p * (1 - lr * weight_decay) - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

The mean must be known before the first element changes, so the gradient is read twice. Parameters
whose every element is a segment are AdamW's: their second moment is stored by another codec than
`SegmentMean`, and their step is AdamW's own.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import TILE_ELEMENTS, Fields, SegmentMean, Tile
from luma_core.rules.adamw import MOMENT_SPECS, AdamFormula, AdamWHyper, AdamWRule, adam_formula
from luma_core.rules.base import ParameterStep, Reduction, Rule, Stages
from luma_core.rules.elementwise import apply_update
from luma_core.rules.moments import (
    largest,
    param_draw,
    random_bits,
    split_like,
    write_parameter,
)

_ADAMW = AdamWRule()


class AdamMiniRule(Rule):
    """Adam-mini with decoupled weight decay."""

    moments = MOMENT_SPECS

    def update_formula(self, group: Mapping[str, Any], step: int) -> AdamFormula | None:
        return adam_formula(group, step)

    def hyper(self, group: Mapping[str, Any], step: int, *, coarse: bool = False) -> AdamWHyper:
        """Return the numbers of step ``step`` (1 for the first) under a group's options."""
        return _ADAMW.hyper(group, step, coarse=coarse)

    def stages(self, item: ParameterStep) -> Stages:
        """Take one parameter's step: the segments' sums first, then tile by tile.

        Memory: about 20 float32 temporaries of one tile (`TILE_ELEMENTS`), and about 8 float64 of
        the size of the second moment.

        Returns:
            int64 0-d tensor on the parameter's device: segments whose second moment was not finite.
            Under ``skip_nonfinite`` their elements, moments and second moment keep their values;
            where an element of the first moment shares a scale with another segment's, it is coded
            again on the new scale.
        """
        if not isinstance(item.moments["exp_avg_sq"].codec, SegmentMean):
            return (yield from _ADAMW.stages(item))
        step = _SegmentStep(item)
        yield from step.measured()
        step.update_tiles()
        return step.finish()


class _SegmentStep:
    """One parameter's step.

    The parameter may be a part of one; partition and second moment are those of the whole.

    Attributes:
        second: the new second moment, float32 ``[segments]``; known once `measured` has run.
        finite: whether it is finite, bool ``[segments]``.
    """

    second: Tensor
    finite: Tensor

    def __init__(self, item: ParameterStep) -> None:
        stored = item.moments["exp_avg_sq"]
        assert isinstance(stored.codec, SegmentMean)
        self._item = item
        # An element may move further than its segment's mean: AdamW's bound is not for it.
        self._hyper: AdamWHyper = replace(item.hyper, limit=math.inf)
        self._stored = stored.fields["value"]
        self._partition = stored.codec.partition
        self._first = item.moments["exp_avg"]
        self._scales: Fields = {}

    def measured(self) -> Generator[Reduction, Tensor, None]:
        """Find the new second moment, and the scale of a first moment that has one."""
        sums = self._position_sums()
        sums = (yield Reduction(sums.view(-1), "sum")).view_as(sums)
        mean = self._partition.means_of(sums)
        self.second = (self._stored * self._hyper.beta2).add_(mean, alpha=1.0 - self._hyper.beta2)
        self.finite = torch.isfinite(self.second)
        if self._first.codec.block_size is None:
            yield from self._fit_tensor()

    def _position_sums(self) -> Tensor:
        item, of = self._item, self._square
        if item.whole_row is None:
            return self._partition.position_sums(item.grad, of, first_index=item.first_index)
        sums = torch.zeros(
            self._partition.outer,
            self._partition.length,
            dtype=torch.float64,
            device=item.grad.device,
        )
        first, column = divmod(item.first_index, item.whole_row)
        rows = max(1, TILE_ELEMENTS // item.whole_row)
        for row in range(0, item.grad.shape[0] if item.row else 0, rows):
            part = item.grad[row : row + rows].flatten(1)
            # What other processes have of these rows is theirs to add.
            whole = part.new_zeros(part.shape[0], item.whole_row)
            whole[:, column : column + item.row] = part
            sums += self._partition.position_sums(
                whole, of, first_index=(first + row) * item.whole_row
            )
        return sums

    def _square(self, grad: Tensor) -> Tensor:
        # The factor comes first: squares of gradients that a scaler enlarged may be infinite.
        factor = self._item.grad_factor
        return (grad if factor is None else grad * factor).square()

    def update_tiles(self) -> None:
        """Update the first moment and the parameter."""
        codec, fields = self._first.codec, self._first.fields
        shape = self._item.param.shape
        scales = self._scales
        for tile in codec.grid(shape).tiles():
            keep = self._keep(tile)
            stored = codec.read_tile(fields, tile)
            new = self._new_first(tile, stored, keep)
            second = self._spread(self.second, tile)
            self._store_first(tile, new, second, stored, scales, keep)
            old = tile.read(self._item.param).float()
            moments = {"exp_avg": new, "exp_avg_sq": second}
            param = apply_update(old, _ADAMW.update_of(moments, self._hyper), self._hyper)
            write_parameter(self._item, tile, param, keep, param_draw(self._item, tile))
        for key, value in scales.items():
            fields[key].copy_(value.reshape(fields[key].shape))

    def finish(self) -> Tensor:
        """Store the second moment and return the number of segments that were not finite."""
        second = self.second
        if self._item.skip_nonfinite:
            second = torch.where(self.finite, second, self._stored)
        self._stored.copy_(second)
        return (~self.finite).sum()

    def _spread(self, values: Tensor, tile: Tile) -> Tensor:
        item, start, stop = self._item, tile.start, tile.start + tile.numel
        if item.whole_row is None:
            first = item.first_index
            return tile.blocked(self._partition.spread(values, first + start, first + stop))
        row, column = divmod(item.first_index, item.whole_row)
        begin, end = start // item.row, -(-stop // item.row)
        whole = self._partition.spread(
            values, (row + begin) * item.whole_row, (row + end) * item.whole_row
        )
        part = whole.view(-1, item.whole_row)[:, column : column + item.row].reshape(-1)
        return tile.blocked(part[start - begin * item.row : stop - begin * item.row])

    def _keep(self, tile: Tile) -> Tensor | None:
        return self._spread(self.finite, tile) if self._item.skip_nonfinite else None

    def _new_first(self, tile: Tile, stored: Fields, keep: Tensor | None) -> Tensor:
        """Return a tile's new first moment; the old one, ``stored``, where ``keep`` is false."""
        item = self._item
        grad = tile.read(item.grad).float()
        if item.grad_factor is not None:
            grad = grad * item.grad_factor
        if self._hyper.maximize:
            grad = -grad
        old = self._first.codec.decode(stored)
        new = old.lerp(grad, 1.0 - self._hyper.beta1)
        return new if keep is None else torch.where(keep, new, old)

    def _fit_tensor(self) -> Generator[Reduction, Tensor, None]:
        """Find the scales of a first moment with one for the whole tensor."""
        codec = self._first.codec
        fitted = codec.fit(torch.zeros(1, 1, 1, device=self.second.device))
        for tile in codec.grid(self._item.param.shape).tiles():
            stored = codec.read_tile(self._first.fields, tile)
            part = codec.fit(self._new_first(tile, stored, self._keep(tile)).reshape(1, 1, -1))
            fitted = codec.merge(fitted, part)
        if fitted:
            found = list(fitted.values())
            reduced = yield largest(found)
            self._scales = dict(zip(fitted, split_like(reduced, found), strict=True))

    def _store_first(
        self,
        tile: Tile,
        new: Tensor,
        second: Tensor,
        stored: Fields,
        scales: Fields,
        keep: Tensor | None,
    ) -> None:
        """Code and store a tile's first moment; ``scales`` is that of a tensor with one."""
        codec = self._first.codec
        draw = None
        if codec.rounds:
            draw = rounding.first_draw(random_bits(self._item, tile))
        own = {} if scales else codec.refit(new, stored)
        fitted = scales or own
        value = codec.round_down_below(new, fitted, second.sqrt())
        values = {**own, **codec.encode(value, fitted, draw)}
        if keep is not None and not scales:
            # A block that is left out as a whole keeps its very codes.
            touched = keep.any(dim=-1, keepdim=True) if own else keep
            values = {
                key: torch.where(touched, value, stored[key]) for key, value in values.items()
            }
        codec.write_tile(self._first.fields, tile, values)
