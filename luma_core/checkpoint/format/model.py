"""Model weights in a checkpoint, in the Hub's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from luma_core.checkpoint.format.dtypes import check_storable
from luma_core.checkpoint.format.extra import flatten_extra
from luma_core.checkpoint.format.manifest import TensorEntry
from luma_core.dtypes import stored_bytes
from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.lazy import import_later
from luma_core.sharding import local_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = import_later("torch", globals())

VALUE_MARK = "$value"
"""Behind the key of a value that is no tensor: the name of its JSON form's bytes, and of tensors in
it the beginning."""


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, and aliases for those that share another's memory.

    Values that are no tensors, such as a module's extra state, become bytes: see `VALUE_MARK`.

    Raises:
        ConfigurationError: the state dict holds something that cannot be kept exactly.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if name == "__metadata__" or VALUE_MARK in name:
            raise ConfigurationError(f"a model tensor may not be named {name!r}.")
        if not isinstance(value, torch.Tensor):
            tensors |= _value_tensors(name, value)
            continue
        check_storable(f"model tensor {name!r}", value)
        memory = memory_of(value)
        if value.numel() and memory in owners:
            aliases[name] = owners[memory]
        else:
            owners[memory] = name
            tensors[name] = value
    return tensors, aliases


def _value_tensors(name: str, value: Any) -> dict[str, Tensor]:
    form, tensors = flatten_extra(value, f"model.state_dict()[{name!r}]")
    content = bytearray(json.dumps(form, sort_keys=True, allow_nan=False).encode())
    found = {name + VALUE_MARK: torch.frombuffer(content, dtype=torch.uint8)}
    return found | {name + VALUE_MARK + pointer: tensor for pointer, tensor in tensors.items()}


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common that are the same numbers in the same memory."""
    return (
        tensor.device,
        local_tensor(tensor).data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )


def index_bytes(tensors: Iterable[TensorEntry]) -> bytes:
    """Return the content of ``model.safetensors.index.json`` in the Hub's convention."""
    weight_map = {entry.name: entry.file for entry in tensors}
    total = sum(stored_bytes(entry.dtype, entry.shape) for entry in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def check_names(what: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Check that two lists hold the same names, in any order.

    Raises:
        StateMismatchError: says which are missing and which are unexpected.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    if missing or unexpected:
        raise StateMismatchError(
            f"{what} differ: missing from the checkpoint {some_names(missing)}, "
            f"unexpected in it {some_names(unexpected)}.",
            hint="Load into the model that was saved, or load what fits with strict=False.",
        )
