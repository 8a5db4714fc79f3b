"""Gradients of embeddings' lookups as rows, beside a gradient that has all rows already.

Where a model's output layer is its token embedding, autograd makes two gradients of the embedding's
size, one for each use, and their sum in a third tensor. Rows (a sparse tensor) need no second one.
Their sum with the first still is another tensor if that is of a matrix product: autograd adds in
place only to memory that nothing else refers to, and such a gradient is a view of its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luma_core.sharding import is_sharded


def lookups_by_row(model: nn.Module, params: Iterable[Tensor]) -> list[Any]:
    """Make embeddings of a model that look up rows of ``params`` give gradients of rows.

    Sums of gradients have the same bits, but the gradient of an embedding without another use is
    sparse. Embeddings are left as they are if they are sharded, compiled, of a class of their own,
    or have an option under which a lookup does more than look up.

    Returns:
        handles whose ``remove`` undoes it.
    """
    own = {id(param) for param in params}
    return [
        module.register_forward_hook(_looked_up, prepend=True)
        for module in model.modules()
        if type(module) is nn.Embedding
        and "forward" not in vars(module)
        and id(module.weight) in own
        and not is_sharded(module.weight)
        and not (module.sparse or module.scale_grad_by_freq)
        and module.max_norm is None
    ]


def _looked_up(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    if torch.compiler.is_compiling() or not output.requires_grad or len(args) != 1:
        return None
    lookup: Callable[..., Tensor] = _Lookup.apply
    return lookup(module.weight, args[0], module.padding_idx)


class _Lookup(torch.autograd.Function):
    """``functional.embedding`` with a gradient of rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        """Return ``[*ids.shape, width]``."""
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = weight.shape, padding_idx
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the weight as a sparse tensor."""
        flat = ctx.saved_tensors[0].reshape(-1).long()
        rows = grad.reshape(flat.numel(), -1)
        if ctx.padding_idx is not None:
            rows = rows.masked_fill((flat == ctx.padding_idx)[:, None], 0)
        return _summed_rows(flat, rows, ctx.shape), None, None


def _summed_rows(ids: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Return a sparse tensor of ``shape``: the sum of ``rows`` by id, each id once.

    Equal ids are summed by what sums them in PyTorch's own gradient, so that the bits are those of
    adding that. There are as many rows as there can be different ids, a number that is known
    without waiting for the device; those left over are zeros.
    """
    count = min(ids.numel(), shape[0])
    ordered, order = ids.sort(stable=True)
    place = torch.zeros_like(ordered)
    place[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    summed = torch.ops.aten.embedding_dense_backward(
        rows, torch.empty_like(place).scatter_(0, order, place), count, -1, False
    )
    found = ids.new_zeros(count).scatter_(0, place, ordered)
    return torch.sparse_coo_tensor(
        found[None], summed, shape, check_invariants=False, device=summed.device
    )
