"""Moments that are stored in parts, as fields of whole moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from luma_core import backends
from luma_core.checkpoint.format.consistency import tensor_name
from luma_core.checkpoint.format.manifest import Box, ParameterEntry
from luma_core.checkpoint.format.stored_tensors import box_shape
from luma_core.codecs import Codec, codec_from_dict
from luma_core.state import field_key

if TYPE_CHECKING:
    from torch import Tensor


class ReadStored(Protocol):
    """Returns a stored tensor by name, and by box where it is a field of a part."""

    def __call__(self, name: str, box: Box | None = None, /) -> Tensor: ...


class RecodedFields:
    """Reads fields of moments; one that is stored in parts is coded anew, to nearest.

    Args:
        entry: of the parameter.
        boxes: the parts of each moment; none where it is stored whole.
        stored: reads stored tensors.
    """

    def __init__(
        self, entry: ParameterEntry, boxes: Mapping[str, Sequence[Box]], stored: ReadStored
    ) -> None:
        self._entry = entry
        self._boxes = boxes
        self._stored = stored
        self._coded: dict[str, Tensor] = {}

    def read(self, key: str) -> Tensor:
        """Return a field by its key, ``<moment>.<field>``, in memory of its own."""
        moment = key.partition(".")[0]
        if not self._boxes[moment]:
            return self._stored(tensor_name(self._entry.name, key))
        if key not in self._coded:
            coded = backends.encode(self._codec(moment), self._values(moment))
            self._coded = {field_key(moment, name): value for name, value in coded.items()}
        # Whoever reads the fields of a moment reads each once.
        return self._coded.pop(key)

    def _values(self, moment: str) -> Tensor:
        first, *others = self._boxes[moment]
        values = self._part(moment, first)
        whole = values.new_empty(self._entry.shape)
        _put(whole, first, values)
        for box in others:
            _put(whole, box, self._part(moment, box))
        return whole

    def _part(self, moment: str, box: Box) -> Tensor:
        codec, shape = self._codec(moment), box_shape(box)
        fields = {
            name: self._stored(tensor_name(self._entry.name, field_key(moment, name)), box)
            for name in codec.layout(shape)
        }
        return backends.decode(codec, fields, shape)

    def _codec(self, moment: str) -> Codec:
        return codec_from_dict(self._entry.codecs[moment])


def _put(whole: Tensor, box: Box, values: Tensor) -> None:
    whole[tuple(slice(*bounds) for bounds in box)] = values
