"""Model weights in a checkpoint, in the Hub's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luma_core.checkpoint.dtypes import check_storable, dtype_name, tensor_bytes, torch_dtype
from luma_core.checkpoint.manifest import Manifest, TensorEntry
from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.sharding import local_tensor


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, and aliases for those that share another's memory.

    Raises:
        ConfigurationError: the state dict holds something else than dense tensors.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"the model's state dict has a {type(value).__name__} under {name!r}; "
                "only tensors can be saved.",
                hint="Save such values in extra=.",
            )
        if name == "__metadata__":
            raise ConfigurationError("a model tensor may not be named '__metadata__'.")
        check_storable(f"model tensor {name!r}", value)
        memory = _memory(value)
        if value.numel() and memory in owners:
            aliases[name] = owners[memory]
        else:
            owners[memory] = name
            tensors[name] = value
    return tensors, aliases


def _memory(tensor: Tensor) -> tuple[Any, ...]:
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
    total = sum(_raw_bytes(entry) for entry in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _raw_bytes(entry: TensorEntry) -> int:
    dtype = torch_dtype(entry.dtype)
    assert dtype is not None
    return tensor_bytes(dtype, entry.shape)


def check_model(manifest: Manifest, model: nn.Module) -> dict[str, TensorEntry]:
    """Return the entry for each tensor of the model's state dict.

    Raises:
        StateMismatchError: names, shapes or dtypes differ; says which and what was expected.
    """
    stored = {entry.name: entry for entry in manifest.tensors_of("model")}
    if not stored:
        raise StateMismatchError(
            "the checkpoint holds no model weights.", hint="Load it without model=."
        )
    stored |= {alias: stored[name] for alias, name in manifest.aliases.items()}
    own = _own_tensors(model)
    check_names("model tensors", list(own), list(stored))
    for name, tensor in own.items():
        entry = stored[name]
        found = (entry.dtype, entry.shape)
        expected = (dtype_name(tensor.dtype), tuple(tensor.shape))
        if found != expected:
            raise StateMismatchError(
                f"model tensor {name!r}: the checkpoint has {found[0]} {list(found[1])}; "
                f"the model has {expected[0]} {list(expected[1])}."
            )
    return {name: stored[name] for name in own}


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@torch.no_grad()
def load_model(
    model: nn.Module, entries: Mapping[str, TensorEntry], read: Callable[[TensorEntry], Tensor]
) -> None:
    """Copy the stored tensors into the model, one at a time."""
    for name, tensor in _own_tensors(model).items():
        tensor.copy_(read(entries[name]))


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
            hint="Load into the same model as was saved.",
        )
