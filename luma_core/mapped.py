"""Tensors whose memory is a mapped file: whoever reads much of one need not fill the page cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from luma_core.direct import PAGE_BYTES, Bytes
from luma_core.lazy import import_later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = import_later("torch", globals())

_LEAST_BYTES = 1 << 20


class MappedFile(Protocol):
    """A file and the block of memory that shows it.

    Attributes:
        bytes: uint8, all of it.
    """

    bytes: Tensor

    def read(self, first: int, memory: Tensor) -> None:
        """Read bytes from ``first`` on, as many as ``memory`` (uint8, of the host) has.

        Past the page cache where ``memory`` begins at the same place of a page.
        """
        ...


_files: WeakValueDictionary[int, MappedFile] = WeakValueDictionary()


def register(file: MappedFile) -> None:
    """Let `pieces` read a file as long as somebody has it."""
    _files[file.bytes.data_ptr()] = file


def pieces(tensor: Tensor, piece_bytes: int) -> Iterator[Bytes] | None:
    """Return what yields a tensor's bytes, each piece in memory of its own.

    ``None`` where the tensor is not large, not contiguous, or of no file that is registered.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < _LEAST_BYTES or not tensor.is_contiguous():
        return None
    block = tensor.untyped_storage().data_ptr()
    file = _files.get(block)
    if file is None:
        return None
    start = tensor.data_ptr() - block
    return _read(file, start, start + tensor.nbytes, piece_bytes)


def _read(file: MappedFile, start: int, stop: int, piece_bytes: int) -> Iterator[Bytes]:
    for first in range(start, stop, piece_bytes):
        size = min(piece_bytes, stop - first)
        room = torch.empty(size + PAGE_BYTES, dtype=torch.uint8, device="cpu")
        memory = room[(first - room.data_ptr()) % PAGE_BYTES :][:size]
        file.read(first, memory)
        yield memory.numpy()
