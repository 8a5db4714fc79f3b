"""Moments of parts of parameters: coded and decoded where a process has only a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core import backends
from luma_core.codecs import Codec, Fields
from luma_core.sharding import Part, is_sharded, local_tensor, padded_fields, used_fields

if TYPE_CHECKING:
    from torch import Tensor


def _reencodes_whole(codec: Codec) -> bool:
    """Return whether a part cannot be coded without the other parts."""
    return codec.block_size is None or not codec.tiled


def encoded_part(part: Part, codec: Codec, moment: Tensor) -> Fields:
    """Code a moment by rounding to nearest; return its fields as DTensors where they are cut.

    With one scale for the whole tensor, or one value for segments of it, the moment is gathered.

    Args:
        part: this process's part.
        codec: the codec.
        moment: float tensor, the whole moment, on this process's device, or a DTensor.
    """
    places = part.fields(codec)
    if _reencodes_whole(codec):
        whole = moment.full_tensor() if is_sharded(moment) else moment
        coded = backends.encode(codec, whole)
        cut = {name: part.sliced(value, places[name]).clone() for name, value in coded.items()}
        return {name: part.wrapped(value, places[name]) for name, value in cut.items()}
    local = local_tensor(moment) if is_sharded(moment) else moment[part.slices]
    coded = padded_fields(part, codec, backends.encode(codec, local.contiguous()))
    return {name: part.wrapped(value, places[name]) for name, value in coded.items()}


def decoded_part(part: Part, codec: Codec, fields: Fields) -> Tensor:
    """Return this process's part of a stored moment, float32 of ``part.local_shape``."""
    used = used_fields(part, codec, fields)
    if codec.tiled:
        return backends.decode(codec, used, part.local_shape)
    return backends.decode(codec, used, part.shape)[part.slices]
