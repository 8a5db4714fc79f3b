"""The partition of a whole model: from its module tree, or from names and shapes alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from luma_core.codecs.segments import Partition
from luma_core.errors import ConfigurationError
from luma_core.partition.heads import Heads
from luma_core.partition.layer import Layer, Siblings
from luma_core.partition.rules import GPT2_ROLES, Context, choose, overridden
from luma_core.partition.table import PartitionTable

Overrides = Mapping[str, str | Partition]
"""Shell patterns of parameter names to what decides for them, the first that matches."""


def partition_model(
    model: nn.Module,
    *,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    overrides: Overrides | None = None,
) -> PartitionTable:
    """Cut the parameters of a model into Hessian blocks.

    Modules tell what a parameter is and how it lies in memory; they, and the ``config`` of those
    that have one, tell its heads. No value of a parameter is read, so a model on the ``meta``
    device will do.

    Args:
        model: any module; parameters shared by several modules count once, by their first name.
            Frozen integers, as quantized layers have them, are left out.
        n_heads: query heads. Give this and the next two only to correct what modules say.
        n_kv_heads: key and value heads.
        head_dim: rows of one head.
        overrides: shell patterns of names, each with ``"row"``, ``"column"``, ``"vector"``,
            ``"element"``, ``"whole"``, ``"head"``, ``"qkv"`` (queries, keys, values),
            ``"qkv_grouped"`` (by key head) or a `Partition`. The first that matches decides.

    Raises:
        ConfigurationError: heads are needed and not known, a number does not fit a shape, or an
            override cannot work or matches nothing.
    """
    modules = dict(model.named_modules())
    layers = [
        _layer_of_module(name, tuple(param.shape), modules)
        for name, param in model.named_parameters()
        if not is_lazy(param) and (param.requires_grad or param.is_floating_point())
    ]
    given = Heads(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)
    return _table(layers, given, overrides or {})


def partition_names(
    named: Iterable[tuple[str, Tensor | torch.Size | Sequence[int]]],
    *,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    overrides: Overrides | None = None,
) -> PartitionTable:
    """Cut parameters into Hessian blocks by their names and shapes.

    Matrices are taken for ``[out, in]``, except GPT-2's where its ``c_attn`` is wider than high.
    Prefer `partition_model`, which need not guess.

    Args:
        named: names with parameters or their shapes, such as ``model.named_parameters()``.
        n_heads: query heads, needed where there is attention, unless ``head_dim`` is given and
            query and key are apart.
        n_kv_heads: key and value heads, needed where a fused projection has fewer of them.
        head_dim: rows of one head; by default a query projection's rows over ``n_heads``.
        overrides: as in `partition_model`.

    Raises:
        ConfigurationError: as in `partition_model`.
    """
    layers = [
        Layer(name, tuple(item.shape if isinstance(item, Tensor) else item)) for name, item in named
    ]
    if any(_is_gpt2(layer) for layer in layers):
        layers = [
            Layer(layer.name, layer.shape, transposed=_is_gpt2_matrix(layer)) for layer in layers
        ]
    given = Heads(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim)
    return _table(layers, given, overrides or {})


def _is_gpt2_matrix(layer: Layer) -> bool:
    return len(layer.shape) == 2 and layer.role in GPT2_ROLES


def _is_gpt2(layer: Layer) -> bool:
    return (
        _is_gpt2_matrix(layer) and layer.role == "c_attn" and layer.shape[1] == 3 * layer.shape[0]
    )


def _layer_of_module(name: str, shape: tuple[int, ...], modules: Mapping[str, nn.Module]) -> Layer:
    path = name.rpartition(".")[0]
    ancestors = [modules[path]]
    while path:
        path = path.rpartition(".")[0]
        ancestors.append(modules[path])
    # Transformers' own class, which has no other mark.
    transposed = type(ancestors[0]).__name__ == "Conv1D" and len(shape) == 2
    return Layer(name, shape, ancestors[0], tuple(ancestors), transposed)


def _table(layers: Sequence[Layer], given: Heads, overrides: Overrides) -> PartitionTable:
    context = Context(given, Siblings(layers))
    unused = set(overrides)
    rows = []
    for layer in layers:
        pattern = next((p for p in overrides if fnmatch.fnmatchcase(layer.name, p)), None)
        if pattern is None:
            rows.append(choose(layer, context))
        else:
            unused.discard(pattern)
            rows.append(overridden(layer, overrides[pattern], pattern, context))
    if unused:
        example = f", such as {layers[0].name!r}" if layers else ""
        raise ConfigurationError(
            f"overrides[{min(unused)!r}] matches none of the {len(layers)} parameters that no "
            f"earlier pattern matched{example}."
        )
    return PartitionTable(tuple(rows))
