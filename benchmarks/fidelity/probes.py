"""Codecs that do not exist: AdamW whose float32 moments are rounded as a codec would round them.

An optimizer named ``probe:M/V`` rounds all matrices' moments together in one compiled function, so
that an idea costs one line here. ``M`` and ``V`` are ``f32`` or a rounding and how it is done,
``nearest``, ``random`` (stochastic), ``dither`` (subtractive) or ``shifted`` (subtractive, replayed
from one byte a block): ``probe:sharp3-nearest/f32``. docs/experiments.md tells what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from luma_core.errors import ConfigurationError

PREFIX = "probe:"
BLOCK = 128
Rounding = Callable[[Tensor, str], Tensor]


def _mirrored(*levels: float) -> tuple[float, ...]:
    return (*(-x for x in reversed(levels)), 0.0, *levels)


TABLES = {
    "symmetric4": _mirrored(0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 1.0),
    "clipped4": _mirrored(0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875),
    "dynamic4": (*_mirrored(0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875), 1.0),
    "e2m1": _mirrored(1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0),
    "sharp3": (*_mirrored(0.0325, 0.2125, 0.6625), 1.0),
    "signs3": (-1.0, -0.6, -0.25, -0.05, 0.05, 0.25, 0.6, 1.0),
    "steep3": _mirrored(0.0325, 0.2125, 1.0),
}
"""Levels of the first moment, as shares of the largest magnitude of its block of 128."""


def _round(x: Tensor, how: str) -> Tensor:
    return torch.floor(x + (0.5 if how == "nearest" else torch.rand_like(x)))


def _from_table(u: Tensor, levels: tuple[float, ...], how: str) -> Tensor:
    table = torch.tensor(levels, device=u.device)
    if how == "nearest":
        return table[torch.bucketize(u, (table[1:] + table[:-1]) / 2)]
    above = torch.bucketize(u, table, right=True).clamp(1, len(levels) - 1)
    low, high = table[above - 1], table[above]
    return torch.where(torch.rand_like(u) * (high - low) < u - low, high, low)


def _linear(u: Tensor, bits: int, how: str) -> Tensor:
    half = 2 ** (bits - 1)
    if how not in ("dither", "shifted"):
        return _round(u * (half - 1), how) / (half - 1)
    noise = torch.rand_like(u) if how == "dither" else _shifted(u)
    code = torch.floor(u * (half - 0.5) + noise).clamp(-half, half - 1)
    return (code - noise + 0.5) / (half - 0.5)


def _shifted(u: Tensor) -> Tensor:
    """Return noise that a byte for each block gives: evenly spread values, all moved alike."""
    places = torch.arange(u.shape[-1], device=u.device) * 0.6180339887498949
    byte = torch.randint(256, (*u.shape[:-1], 1), device=u.device)
    return torch.frac(places + (byte + 0.5) / 256)


def round_first(m: Tensor, name: str) -> Tensor:
    """Return flat ``m`` rounded in blocks of 128 as ``name`` says."""
    if name == "f32":
        return m
    kind, how = name.split("-")
    blocks = m.view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-30)
    u = blocks / scale
    if kind in TABLES:
        y = _from_table(u, TABLES[kind], how)
    elif kind.startswith("linear"):
        y = _linear(u, int(kind[6:]), how)
    elif kind.startswith("square"):
        y = _linear(u.sign() * u.abs().sqrt(), int(kind[6:]), how)
        y = y * y.abs()
    else:
        raise ConfigurationError(f"{name!r} is no rounding of a first moment.")
    return (y * scale).view_as(m)


def round_second(v: Tensor, name: str) -> Tensor:
    """Return flat ``v`` rounded in blocks of 128 as ``name`` says."""
    if name == "f32":
        return v
    blocks = v.view(-1, BLOCK)
    largest = blocks.amax(1, keepdim=True)
    if name == "mean":
        return blocks.mean(1, keepdim=True).expand_as(blocks).reshape(v.shape)
    if name.startswith("floor"):
        return torch.maximum(blocks, largest * 2.0 ** -float(name[5:])).view_as(v)
    if name.startswith("meanfloor"):
        return torch.maximum(blocks, blocks.mean(1, keepdim=True) * float(name[9:])).view_as(v)
    kind, how = name.split("-")
    if kind.startswith("linear"):
        levels = 2 ** int(kind[6:])
        code = _round(blocks / largest.clamp_min(1e-38) * levels - 1, how).clamp(0, levels - 1)
        return ((code + 1) / levels * largest).view_as(v)
    scale = largest.sqrt().clamp_min(1e-30)
    share = blocks.sqrt() / scale
    if kind.startswith("root"):
        levels = 2 ** int(kind[4:])
        y = (_round(share * levels - 1, how).clamp(0, levels - 1) + 1) / levels
    elif kind.startswith("quarter"):
        steps = 2 ** int(kind[7:]) - 1
        y = _round((share - 0.25) / 0.75 * steps, how).clamp(0, steps) / steps * 0.75 + 0.25
    elif kind.startswith("octave"):
        bits, _, per_octave = kind[6:].partition("b")
        steps = range(2 ** int(bits) - 1, -1, -1)
        levels = tuple(2.0 ** (-step / float(per_octave)) for step in steps)
        y = _from_table(share.clamp_min(levels[0]), levels, how)
    elif kind.startswith("log"):
        bits, _, per_octave = kind[3:].partition("b")
        top, fine = 2 ** int(bits) - 1, 2.0 ** int(per_octave)
        ceiling = torch.ceil(torch.log2(scale))
        root = (share * scale).clamp_min(1e-30)
        octave = torch.floor(torch.log2(root))
        place = octave + root * torch.exp2(-octave) - 1 - ceiling
        place = (_round(place * fine + top, how).clamp(0, top) - top) / fine + ceiling
        octave = torch.floor(place)
        y = torch.exp2(octave) * (1 + place - octave) / scale
    else:
        raise ConfigurationError(f"{name!r} is no rounding of a second moment.")
    return torch.where(largest > 0, (y * scale).square(), 0).view_as(v)


class ProbeAdamW(torch.optim.Optimizer):
    """AdamW with rounded moments for matrices, and torch's own for all else.

    Args:
        groups: matrices first, then what does not decay.
        m: rounding of the first moment; ``v`` that of the second.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, m: str, v: str, **options: Any) -> None:
        super().__init__(list(groups), options)
        matrices, rest = self.param_groups
        self._rest = torch.optim.AdamW([rest])
        self._params = matrices["params"]
        flat = torch.cat([param.detach().reshape(-1) for param in self._params])
        self._flat = [flat, *(torch.zeros_like(flat) for _ in range(3))]
        sizes = [param.numel() for param in self._params]
        self._views = [
            [part.view_as(p) for part, p in zip(whole.split(sizes), self._params, strict=True)]
            for whole in self._flat[:2]
        ]
        self.state[self._params[0]] = {"exp_avg": self._flat[2], "exp_avg_sq": self._flat[3]}
        self._steps = 0
        update = _update_with(m, v)
        self._update = torch.compile(update) if flat.is_cuda else update

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        self._rest.step()
        self._steps += 1
        group = self.param_groups[0]
        torch._foreach_copy_(self._views[1], [param.grad for param in self._params])
        numbers = [
            torch.tensor(value, device=self._flat[0].device)
            for value in (
                group["lr"],
                group["weight_decay"],
                1 - group["betas"][0] ** self._steps,
                1 - group["betas"][1] ** self._steps,
            )
        ]
        self._update(self._flat, numbers, group["betas"], group["eps"])
        torch._foreach_copy_(self._params, self._views[0])


def _update_with(m_name: str, v_name: str) -> Callable[..., None]:
    def update(
        flat: list[Tensor], numbers: list[Tensor], betas: tuple[float, float], eps: float
    ) -> None:
        param, grad, m, v = flat
        lr, decay, correction1, correction2 = numbers
        new_m = m + (1 - betas[0]) * (grad - m)
        new_v = v * betas[1] + (1 - betas[1]) * grad * grad
        change = new_m / correction1 / ((new_v / correction2).sqrt() + eps)
        param.copy_(param * (1 - lr * decay) - lr * change)
        m.copy_(round_first(new_m, m_name))
        v.copy_(round_second(new_v, v_name))

    return update
