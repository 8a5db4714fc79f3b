"""Tensors sharded over processes (DTensor): which part a process has, and what its state is.

A codec's blocks never cross a row, so where a parameter is cut along dimension 0 its fields are cut
along dimension 0 too, and a part is coded as it would be within the whole. Where a cut goes through
blocks (flat tensors above ``min_compress_elements``, and cuts along other dimensions that are not
multiples of the block), each part has blocks of its own: see `Part.aligned`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from luma_core.codecs import Codec, Fields
from luma_core.codecs.base import FieldSpec
from luma_core.codecs.blocks import MIN_ROW_ELEMENTS
from luma_core.errors import UnsupportedParameterError
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

Shape = tuple[int, ...]

_DTENSOR = "torch.distributed.tensor"


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor; imports nothing, for there is none before that."""
    module = sys.modules.get(_DTENSOR)
    return module is not None and isinstance(tensor, module.DTensor)


def is_flattened(tensor: object) -> bool:
    """Return whether FSDP1 made a parameter: a flat one, or a flat one's part of another."""
    return bool(getattr(tensor, "_fsdp_flattened", False))


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this process has; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    local: Any = tensor._local_tensor
    # The result of a collective that may still be under way.
    found: Tensor = local.wait() if hasattr(local, "wait") else local
    return found


def as_dtensor(local: Tensor, shape: Shape, mesh: Any, placements: tuple[Any, ...]) -> Tensor:
    """Return a DTensor of ``shape`` of which this process has ``local``, wherever that is."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # DTensor.from_local would bring state that was offloaded to the CPU back to the mesh.
    stride = torch.empty(shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), stride, local.dtype)
    spec = DTensorSpec(mesh, placements, tensor_meta=meta)
    made: Tensor = DTensor(local, spec, requires_grad=False)
    return made


def cuts(placement: Any) -> bool:
    """Return whether a placement cuts a dimension, as ``Shard`` and FSDP2's strided one do.

    ``placement.is_shard()`` is False of the strided one, by which FSDP2 cuts a dimension that
    tensor parallelism has cut.
    """
    return getattr(placement, "dim", None) is not None


class FieldPlace(NamedTuple):
    """How a stored field of a sharded parameter is sharded itself.

    Attributes:
        spec: dtype and shape of the whole field.
        local_shape: shape of this process's part of it.
        placements: of the field on the parameter's mesh; ``None`` where every process has it
            whole, as a plain tensor.
        used: shape of what the codec uses of this process's part, which is padded where parts
            have blocks of their own.
    """

    spec: FieldSpec
    local_shape: Shape
    placements: tuple[Any, ...] | None
    used: Shape


@dataclass(frozen=True)
class Part:
    """This process's part of a tensor.

    Attributes:
        shape: of the whole tensor.
        local_shape: of the part.
        offset: index of the part's first element in each dimension.
        mesh: the device mesh.
        placements: of the tensor, one for each dimension of the mesh.
    """

    shape: Shape
    local_shape: Shape
    offset: Shape
    mesh: Any
    placements: tuple[Any, ...]

    @property
    def cut(self) -> dict[int, int]:
        """Number of parts of each dimension that is cut."""
        parts: dict[int, int] = {}
        for size, placement in zip(self.mesh.shape, self.placements, strict=True):
            if cuts(placement):
                parts[placement.dim] = parts.get(placement.dim, 1) * size
        return parts

    @property
    def first_index(self) -> int:
        """Index of the part's first element in the flattened whole."""
        index = 0
        for size, offset in zip(self.shape, self.offset, strict=True):
            index = index * size + min(offset, size)
        return index

    @property
    def slices(self) -> tuple[slice, ...]:
        """The part's indices in the whole."""
        pairs = zip(self.offset, self.local_shape, strict=True)
        return tuple(slice(offset, offset + size) for offset, size in pairs)

    @property
    def row_stride(self) -> int | None:
        """Elements of a row of the whole, where rows are cut; ``None`` where they are not."""
        return math.prod(self.shape[1:]) if 1 in self.cut else None

    @property
    def here(self) -> bool:
        """Whether this process is one of the mesh; if not, it has no part at all."""
        return self.mesh.get_coordinate() is not None

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        """The part's first index and the one behind its last, in each dimension of the whole."""
        return tuple((indices.start, indices.stop) for indices in self.slices)

    @property
    def groups(self) -> list[ProcessGroup]:
        """The process groups over which the whole is cut, one for each such mesh dimension."""
        return [
            self.mesh.get_group(index)
            for index, (size, placement) in enumerate(
                zip(self.mesh.shape, self.placements, strict=True)
            )
            if cuts(placement) and size > 1
        ]

    def aligned(self, codec: Codec) -> bool:
        """Return whether the part's blocks are blocks of the whole tensor, on every process.

        If so, any field of the part is a slice of the whole's, and the state can be loaded under
        any other sharding. If not, the part is coded as a tensor of its own.
        """
        cut, layout, grid = self.cut, codec.layout(self.shape), codec.grid(self.shape)
        entries = [spec.entries_per_block for spec in layout.values() if spec.entries_per_block]
        if not cut or not entries or codec.block_size is None:
            return True
        if not grid.flat and set(cut) == {0}:
            return True
        axis = 0 if grid.flat else 1
        if set(cut) - {0, axis} or sum(cuts(p) and p.dim == axis for p in self.placements) != 1:
            return False
        unit = math.prod(self.shape[axis + 1 :])
        sizes = [size * unit for size in _chunks(self.shape[axis], cut[axis])]
        used = [size for size in sizes if size]
        if any(size % codec.block_size for size in used[:-1]):
            return False
        if axis and used[-1] < MIN_ROW_ELEMENTS:
            return False
        blocks = [-(-size // codec.block_size) for size in sizes]
        return all(
            [count * each for count in blocks] == _chunks(grid.blocks_per_row * each, cut[axis])
            for each in entries
        )

    def fields(self, codec: Codec) -> dict[str, FieldPlace]:
        """Return where each field of a moment is, by name."""
        return _field_places(self, codec)

    def wrapped(self, local: Tensor, place: FieldPlace) -> Tensor:
        """Return this process's part of a field as a DTensor, or as it is where it is whole."""
        if place.placements is None:
            return local
        return as_dtensor(local, place.spec.shape, self.mesh, place.placements)

    def like_whole(self, local: Tensor) -> Tensor:
        """Return values with one entry per element of the part as a DTensor of the whole."""
        return as_dtensor(local, self.shape, self.mesh, self.placements)

    def sliced(self, whole: Tensor, place: FieldPlace) -> Tensor:
        """Return this process's part of a whole field that is aligned, as a view."""
        return whole[self.ranges(place)]

    def ranges(self, place: FieldPlace) -> tuple[slice, ...]:
        """Return the indices that this process's part of an aligned field has in the whole."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape = place.spec.shape
        if place.placements is None:
            return tuple(slice(0, size) for size in shape)
        sizes, offsets = compute_local_shape_and_global_offset(shape, self.mesh, place.placements)
        return tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))


def any_cut(params: Iterable[Tensor]) -> bool:
    """Return whether any of some parameters is cut, so that processes must work together."""
    return any(part is not None and part.cut for part in map(part_of, params))


def part_of(tensor: Tensor) -> Part | None:
    """Return what part of a DTensor this process has; ``None`` of any other tensor.

    Raises:
        UnsupportedParameterError: the values of the DTensor are sums over processes.
    """
    if not is_sharded(tensor):
        return None
    return part_at(tuple(tensor.shape), tensor.device_mesh, tuple(tensor.placements))


@lru_cache(maxsize=4096)
def part_at(shape: Shape, mesh: Any, placements: tuple[Any, ...]) -> Part:
    """Return what part this process has of a tensor with placements on a mesh.

    Raises:
        UnsupportedParameterError: the values are sums over processes.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in placements):
        raise UnsupportedParameterError(
            f"a parameter has placements {placements}; its values must be sharded or replicated.",
            hint="Redistribute it to Shard or Replicate.",
        )
    if mesh.get_coordinate() is None:
        return Part(shape, (0,) * len(shape), shape, mesh, placements)
    sizes, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Part(shape, tuple(sizes), tuple(offsets), mesh, placements)


@lru_cache(maxsize=4096)
def _field_places(part: Part, codec: Codec) -> dict[str, FieldPlace]:
    aligned = part.aligned(codec)
    whole = codec.layout(part.shape)
    if not codec.tiled:
        return {name: replicated(spec) for name, spec in whole.items()}
    used = codec.layout(part.local_shape)
    largest = codec.layout(_largest_part(part))
    places = {}
    for name, spec in whole.items():
        local = used[name].shape
        if spec.entries_per_block is None:
            places[name] = FieldPlace(spec, local, part.placements, local)
        elif codec.block_size is None:
            places[name] = replicated(spec)
        elif aligned:
            placements = part.placements
            if codec.grid(part.shape).flat:
                placements = _all_on_first(part.placements)
            places[name] = FieldPlace(spec, local, placements, local)
        else:
            size = math.prod(largest[name].shape)
            count = math.prod(part.cut.values())
            padded = FieldSpec(spec.dtype, (size * count,), spec.entries_per_block)
            places[name] = FieldPlace(padded, (size,), _all_on_first(part.placements), local)
    return places


def replicated(spec: FieldSpec) -> FieldPlace:
    """Return the place of a field that a process has whole."""
    return FieldPlace(spec, spec.shape, None, spec.shape)


def field_places(param: Tensor, codec: Codec) -> dict[str, FieldPlace]:
    """Return where each field of a parameter's moment is, by name; all here if it is not cut."""
    part = part_of(param)
    if part is not None:
        return part.fields(codec)
    return {name: replicated(spec) for name, spec in codec.layout(param.shape).items()}


def _all_on_first(placements: tuple[Any, ...]) -> tuple[Any, ...]:
    from torch.distributed.tensor import Shard

    return tuple(Shard(0) if cuts(placement) else placement for placement in placements)


def _largest_part(part: Part) -> Shape:
    shape = list(part.shape)
    for size, placement in zip(part.mesh.shape, part.placements, strict=True):
        if cuts(placement):
            shape[placement.dim] = -(-shape[placement.dim] // size)
    return tuple(shape)


def _chunks(length: int, count: int) -> list[int]:
    """Return the sizes of ``count`` parts of ``length``, cut as ``torch.chunk`` does."""
    size = -(-length // count)
    return [max(0, min(size, length - index * size)) for index in range(count)]


def state_of_part(part: Part, codec: Codec, device: torch.device) -> Fields:
    """Return the fields of a moment of zeros, DTensors where they are cut."""
    return {
        name: part.wrapped(
            torch.zeros(place.local_shape, dtype=place.spec.dtype, device=device), place
        )
        for name, place in part.fields(codec).items()
    }


def used_fields(part: Part | None, codec: Codec, fields: Fields) -> Fields:
    """Return the local tensors of stored fields, as views of the shapes that the codec takes."""
    if part is None:
        return fields
    found = {}
    for name, place in part.fields(codec).items():
        local = local_tensor(fields[name])
        if place.used != place.local_shape:
            local = local.view(-1)[: math.prod(place.used)].view(place.used)
        found[name] = local
    return found


def padded_fields(part: Part, codec: Codec, used: Fields) -> Fields:
    """Return local tensors as they are stored, from those that `used_fields` returns."""
    found = {}
    for name, place in part.fields(codec).items():
        value = used[name]
        if place.used != place.local_shape:
            padded = value.new_zeros(place.local_shape)
            padded[: value.numel()] = value.reshape(-1)
            value = padded
        found[name] = value
    return found
