"""A parameter's stored tensors, read when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class LazyFields(Mapping[str, "Tensor"]):
    """A parameter's stored tensors, read when they are asked for.

    Args:
        keys: the fields' names.
        read: reads one.
        keep: whether tensors stay in memory once read.
        fresh: whether what ``read`` returns is nobody else's, so that it need not be copied.
    """

    def __init__(
        self, keys: Sequence[str], read: Callable[[str], Tensor], *, keep: bool, fresh: bool = False
    ) -> None:
        self.fresh = fresh and not keep
        self._keys = dict.fromkeys(keys)
        self._read = read
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if self._kept is None:
            return self._read(key)
        if key not in self._kept:
            self._kept[key] = self._read(key)
        return self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
