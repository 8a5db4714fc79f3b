"""The layouts that are known, and which of them a state is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luma_core.convert.layouts import bitsandbytes, flashoptim, torchao
from luma_core.convert.state_dict import Decoder


@dataclass(frozen=True)
class Layout:
    """One library's layout.

    Attributes:
        name: of the library.
        matches: whether a parameter's state is in it.
        decode: reads a parameter's state; None of one that is in AdamW's own layout.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    decode: Decoder


LAYOUTS = (
    Layout("torchao", torchao.matches, torchao.decode),
    Layout("bitsandbytes", bitsandbytes.matches, bitsandbytes.decode),
    Layout("flashoptim", flashoptim.matches, flashoptim.decode),
)


def layout_of(state: Mapping[Any, Any]) -> Layout | None:
    """Return the layout that some parameter's state is in, or None for AdamW's own."""
    entries = [entry for entry in state.values() if isinstance(entry, dict)]
    return next((kind for kind in LAYOUTS if any(map(kind.matches, entries))), None)
