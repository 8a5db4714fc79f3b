"""bitsandbytes' optimizers of one or two moments: codes into tables of 256, scaled by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS
from luma_core.convert.state_dict import Entry, moments_entry
from luma_core.errors import ConversionError

_NEST = "__bnb_optimizer_quant_state__"
_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_TABLE = 256


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state as versions before 0.47 kept it, all of it on one level."""
    nested = entry.get(_NEST)
    return {**entry, **nested} if isinstance(nested, dict) else dict(entry)


def matches(entry: Mapping[str, Any]) -> bool:
    """Whether it is the state of one of its optimizers, coded or not."""
    return "state1" in _flat(entry)


def decode(place: str, entry: Any) -> Entry | None:
    """Read moments: ``qmap[code] * absmax[block]``, or float32 where they are small.

    Raises:
        ConversionError: a part is missing or does not fit; the message begins with ``place``.
    """
    state = _flat(entry)
    for key in ("step", "state1"):
        if key not in state:
            raise ConversionError(
                f"{place} has no {key!r}; it has {', '.join(map(repr, state))}.",
                hint="Of bitsandbytes, state of one or two moments can be read.",
            )
    names = MOMENTS if "state2" in state else MOMENTS[:1]
    coded = [_coded(f"{place}: {moment}", state, i + 1) for i, moment in enumerate(names)]
    heads = [state[f"state{i + 1}"] if kept is None else kept.head for i, kept in enumerate(coded)]

    def read(index: int) -> Tensor:
        kept = coded[index]
        return heads[index].float() if kept is None else kept.values()

    return moments_entry(
        place, state["step"], heads, lambda: [read(i) for i in range(len(names))], names=names
    )


@dataclass(frozen=True)
class _Coded:
    """A coded moment: ``codes`` of its shape, ``table`` [256], ``scales`` [blocks]."""

    codes: Tensor
    table: Tensor
    scales: Tensor
    block_size: int

    @property
    def head(self) -> Tensor:
        """A float32 tensor of the moment's shape that takes no memory."""
        return torch.empty((), device="cpu").expand(self.codes.shape)

    def values(self) -> Tensor:
        x = self.table.float()[self.codes.reshape(-1).int()]
        x *= self.scales.float().repeat_interleave(self.block_size)[: x.numel()]
        return x.view(self.codes.shape)


def _coded(place: str, state: Mapping[str, Any], which: int) -> _Coded | None:
    codes = state[f"state{which}"]
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        return None
    table, scales = (state.get(f"{key}{which}") for key in ("qmap", "absmax"))
    if not (isinstance(table, Tensor) and tuple(table.shape) == (_TABLE,)):
        raise ConversionError(f"{place} has no qmap{which} of {_TABLE} values.")
    if not isinstance(scales, Tensor) or scales.dim() != 1:
        raise ConversionError(
            f"{place} has no absmax{which} of one value per block.",
            hint="State of block_wise=False cannot be read.",
        )
    sizes = [size for size in _BLOCK_SIZES if -(-codes.numel() // size) == len(scales)]
    if not sizes:
        raise ConversionError(
            f"{place} has {len(scales)} scales for {codes.numel()} codes: no block size gives that."
        )
    return _Coded(codes, table, scales, sizes[0])
