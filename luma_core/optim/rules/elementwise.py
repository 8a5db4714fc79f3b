"""Rules that work element by element, in PyTorch operations on tiles of bounded size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Fields, Tile
from luma_core.optim.rules.base import ParameterStep, Rule


class ElementwiseRule(Rule):
    """A rule whose update of an element depends on nothing but that element.

    Its moments' codecs share one block size.
    """

    @abstractmethod
    def update_moments(
        self, grad: Tensor, moments: Mapping[str, Tensor], hyper: Any
    ) -> dict[str, Tensor]:
        """Return the new moments, float32 of the gradient's shape; the inputs stay unchanged."""

    @abstractmethod
    def update_parameter(self, param: Tensor, moments: Mapping[str, Tensor], hyper: Any) -> Tensor:
        """Return the new parameter, float32; the inputs stay unchanged."""

    def step_parameter(self, item: ParameterStep) -> Tensor:
        """Take one parameter's step, tile by tile.

        Memory: about 20 float32 temporaries of one tile (`TILE_ELEMENTS`).
        """
        codec = next(iter(item.moments.values())).codec
        whole = codec.block_size is None
        bad = torch.zeros((), dtype=torch.int64, device=item.param.device)
        tensor_fit: dict[str, Fields] = {}
        tensor_keep: Tensor | None = None
        if whole:
            tensor_fit, finite = _fit_tensor(self, item)
            bad += ~finite
            tensor_keep = finite.reshape(1, 1, 1) if item.skip_nonfinite else None

        for tile, new in _new_moments(self, item):
            keep = tensor_keep
            if not whole:
                blocks = _finite(new).all(dim=-1, keepdim=True)
                bad += (~blocks).sum()
                keep = blocks if item.skip_nonfinite else None
            _write_tile(self, item, tile, new, tensor_fit, keep)

        for name, fitted in tensor_fit.items():
            fields = item.moments[name].fields
            for key, value in fitted.items():
                stored = fields[key]
                value = value.reshape(stored.shape)
                stored.copy_(
                    value
                    if tensor_keep is None
                    else torch.where(tensor_keep.view(()), value, stored)
                )
        return bad


def _new_moments(
    rule: ElementwiseRule, item: ParameterStep
) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
    some = next(iter(item.moments.values())).codec
    for tile in some.grid(item.param.shape).tiles():
        grad = tile.read(item.grad).float()
        old = {
            name: stored.codec.decode(stored.codec.read_tile(stored.fields, tile))
            for name, stored in item.moments.items()
        }
        yield tile, rule.update_moments(grad, old, item.hyper)


def _finite(moments: Mapping[str, Tensor]) -> Tensor:
    finite: Tensor | None = None
    for value in moments.values():
        this = torch.isfinite(value)
        finite = this if finite is None else finite.logical_and_(this)
    assert finite is not None
    return finite


def _fit_tensor(rule: ElementwiseRule, item: ParameterStep) -> tuple[dict[str, Fields], Tensor]:
    """First pass of a step with one scale per tensor: the new scales, and whether all is finite."""
    fits: dict[str, Fields] = {}
    finite = torch.ones((), dtype=torch.bool, device=item.param.device)
    for _, new in _new_moments(rule, item):
        finite &= _finite(new).all()
        for name, value in new.items():
            codec = item.moments[name].codec
            part = codec.fit(value.reshape(1, 1, -1))
            fits[name] = codec.merge(fits[name], part) if name in fits else part
    return fits, finite


def _write_tile(
    rule: ElementwiseRule,
    item: ParameterStep,
    tile: Tile,
    new: Mapping[str, Tensor],
    tensor_fit: Mapping[str, Fields],
    keep: Tensor | None,
) -> None:
    draws = _draws(item, tile)
    for name, value in new.items():
        stored = item.moments[name]
        fitted = tensor_fit.get(name)
        block_fields = stored.codec.fit(value) if fitted is None else {}
        coded = stored.codec.encode(value, block_fields if fitted is None else fitted, draws[name])
        values = {**block_fields, **coded}
        if keep is not None:
            old = stored.codec.read_tile(stored.fields, tile)
            values = {key: torch.where(keep, value, old[key]) for key, value in values.items()}
        stored.codec.write_tile(stored.fields, tile, values)

    old_param = tile.read(item.param)
    param = rule.update_parameter(old_param.float(), new, item.hyper)
    if old_param.dtype == torch.bfloat16:
        param = rounding.to_bfloat16(param, draws[""])
    param = param.to(old_param.dtype)
    tile.write(item.param, param if keep is None else torch.where(keep, param, old_param))


def _draws(item: ParameterStep, tile: Tile) -> dict[str, Tensor | None]:
    """Return the 16-bit draws of each moment, and under ``""`` those of the parameter."""
    rounds_param = item.param.dtype == torch.bfloat16 and item.stochastic_rounding
    draws: dict[str, Tensor | None] = dict.fromkeys((*item.moments, ""))
    if not rounds_param and not any(s.codec.rounds for s in item.moments.values()):
        return draws
    bits = rounding.random_bits(item.keys, tile.start, tile.numel, device=item.param.device)
    bits = tile.blocked(bits)
    kinds = (rounding.first_draw, rounding.second_draw)
    for (name, stored), draw in zip(item.moments.items(), kinds, strict=True):
        draws[name] = draw(bits) if stored.codec.rounds else None
    draws[""] = rounding.third_draw(bits) if rounds_param else None
    return draws
