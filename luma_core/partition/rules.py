"""Which Hessian blocks a parameter has, by what it is: the rules, in the order they are tried.

Queries and keys have one second moment per head; embeddings one per token; values, attention
outputs, MLPs, experts, convolutions and output layers one per output row; biases and norms one per
element. What no rule knows is cut along its last dimension: smaller blocks cost memory, and larger
ones than the Hessian's make training unstable (Zhang et al., 2024, section 2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from luma_core.codecs.segments import Partition
from luma_core.errors import ConfigurationError
from luma_core.partition.heads import Heads, find_heads, fused_partition, head_rows, unknown_heads
from luma_core.partition.layer import Layer, Siblings
from luma_core.partition.table import PartitionRow

QUERY = frozenset(
    {"q_proj", "query", "wq", "to_q", "q", "q_lin", "query_proj", "q_attn", "c_q", "linear_q"}
    | {"q_proj_weight"}
)
KEY = frozenset(
    {"k_proj", "key", "wk", "to_k", "k", "k_lin", "key_proj", "c_k", "linear_k", "k_proj_weight"}
)
FUSED = frozenset(
    {"c_attn", "qkv_proj", "qkv", "wqkv", "to_qkv", "in_proj_weight", "att_proj", "qkv_proj_weight"}
)
FUSED_BY_GROUP = frozenset({"query_key_value", "linear_qkv"})
GPT2_ROLES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Roles that GPT-2 keeps transposed, and its descendants do not."""

_KINDS: tuple[tuple[str, str], ...] = (
    ("value", r"v_proj|value|wv|to_v|v|v_lin|value_proj|c_v|linear_v|v_proj_weight"),
    ("router", r"router|gate|wg|gate_weight"),
    ("output", r"lm_head|output|embed_out|decoder|unembed|head|score|classifier|final_layer"),
)
_MLP = r"mlp|feed_forward|ffn?|intermediate|dense_h_to_4h|dense_4h_to_h|fc\d?|c_fc|lin[12]"
_EMBEDDING = re.compile(r"wte|wpe|(\w+_)?emb(e?d|edding|eddings)?(_tokens|_in|_positions)?")
_EXPERT_UP = frozenset({"gate_up_proj", "gate_proj", "up_proj", "w1", "w13"})
_EXPERT_DOWN = frozenset({"down_proj", "w2"})


@dataclass(frozen=True)
class Context:
    """What rules know beside the layer.

    Attributes:
        given: head geometry that the caller gave.
        siblings: all layers of the model.
    """

    given: Heads
    siblings: Siblings


Rule = Callable[[Layer, Context], PartitionRow | None]


def choose(layer: Layer, context: Context) -> PartitionRow:
    """Return how a layer is cut.

    Raises:
        ConfigurationError: it holds heads, and how many is not known or does not fit.
    """
    found = (rule(layer, context) for rule in _RULES)
    return next(row for row in found if row is not None)


def make_row(
    layer: Layer, kind: str, per: str, why: str, partition: Partition | None = None
) -> PartitionRow:
    """Return a layer's row; ``per`` says the partition where it is not given."""
    if partition is None:
        partition = _PARTITIONS[per](layer.shape)
    return PartitionRow(layer.name, layer.shape, kind, per, why, partition)


_PARTITIONS: dict[str, Callable[[tuple[int, ...]], Partition]] = {
    "row": Partition.rows,
    "column": Partition.columns,
    "vector": Partition.vectors,
    "element": Partition.elements,
    "whole": Partition.whole,
}

OVERRIDES = (*_PARTITIONS, "head", "qkv", "qkv_grouped")
"""What a user may ask for by name."""


def overridden(layer: Layer, spec: str | Partition, pattern: str, context: Context) -> PartitionRow:
    """Return how a layer is cut by a user's word.

    Raises:
        ConfigurationError: ``spec`` is neither a partition of the layer's size nor one of
            ``OVERRIDES``, or the heads it asks for are not known or do not fit.
    """
    why = f"overrides[{pattern!r}]"
    if isinstance(spec, Partition):
        if spec.numel != math.prod(layer.shape):
            raise ConfigurationError(
                f"{why} is a partition of {spec.numel} elements; {layer.name!r} of shape "
                f"{list(layer.shape)} has {math.prod(layer.shape)}."
            )
        return make_row(layer, "override", "segment", why, spec)
    if not isinstance(spec, str) or spec not in OVERRIDES:
        raise ConfigurationError(
            f"{why} is {spec!r}; it must be a Partition or one of "
            f"{', '.join(map(repr, OVERRIDES))}."
        )
    if spec in _PARTITIONS:
        return make_row(layer, "override", spec, why)
    if len(layer.shape) != 2:
        raise ConfigurationError(
            f"{why} asks for heads; {layer.name!r} of shape {list(layer.shape)} is no matrix."
        )
    found = find_heads(layer.ancestors)
    if spec == "head":
        count = "n_kv_heads" if layer.role in KEY else "n_heads"
        return _by_head(layer, context, "override", why, count)
    partition = fused_partition(layer, context.given, found, grouped=spec == "qkv_grouped")
    return make_row(layer, "override", "head, head, row", why, partition)


def _element_rule(layer: Layer, _context: Context) -> PartitionRow | None:
    leaf, role = layer.parts[-1], layer.role
    if leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_"):
        return make_row(layer, "bias", "element", f"called {leaf!r}")
    if "norm" in layer.module_type.lower():
        return make_row(layer, "norm", "element", f"module {layer.module_type}")
    if len(layer.shape) < 2:
        kind = "norm" if "norm" in role or re.fullmatch(r"ln(_\w+)?", role) else "vector"
        return make_row(layer, kind, "element", "fewer than 2 dimensions")
    return None


def _embedding_rule(layer: Layer, _context: Context) -> PartitionRow | None:
    if isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
        return make_row(layer, "embedding", "row", f"module {layer.module_type}")
    if len(layer.shape) <= 3 and _EMBEDDING.fullmatch(layer.role):
        return make_row(layer, "embedding", "vector", f"called {layer.role!r}")
    return None


def _convolution_rule(layer: Layer, _context: Context) -> PartitionRow | None:
    if isinstance(layer.module, _ConvTransposeNd):
        # [in, out / groups, ...], where inputs come group by group.
        groups = layer.module.groups
        inputs, outputs, *kernel = layer.shape
        cut = Partition(groups, inputs // groups, outputs, math.prod(kernel), ((outputs, 1),))
        return make_row(layer, "convolution", "output", f"module {layer.module_type}", cut)
    if isinstance(layer.module, _ConvNd):
        return make_row(layer, "convolution", "row", f"module {layer.module_type}")
    if len(layer.shape) > 3:
        return make_row(layer, "convolution", "row", "more than 3 dimensions")
    if len(layer.shape) == 3 and "conv" in layer.role:
        return make_row(layer, "convolution", "row", f"called {layer.role!r}")
    return None


def _expert_rule(layer: Layer, context: Context) -> PartitionRow | None:
    if len(layer.shape) != 3:
        return None
    if "expert" not in layer.module_type.lower() and not any("expert" in p for p in layer.parts):
        return None
    experts, first, last = layer.shape
    if _experts_transposed(layer, context):
        cut = Partition(experts, first, last, 1, ((last, 1),))
        return make_row(layer, "expert", "column", "experts, [expert, in, out]", cut)
    cut = Partition(experts, 1, first, last, ((first, 1),))
    return make_row(layer, "expert", "row", "experts, [expert, out, in]", cut)


def _experts_transposed(layer: Layer, context: Context) -> bool:
    """Return whether experts are ``[expert, in, out]``, by their module or by sizes that meet."""
    told = getattr(layer.module, "is_transposed", None)
    if isinstance(told, bool):
        return told
    up, down = (context.siblings.of(layer, roles) for roles in (_EXPERT_UP, _EXPERT_DOWN))
    if up is None or down is None or len(up.shape) != 3 or len(down.shape) != 3:
        return False
    return up.shape[1] == down.shape[2] and up.shape[2] != down.shape[1]


def _head_rule(layer: Layer, context: Context) -> PartitionRow | None:
    if len(layer.shape) != 2:
        return None
    why = f"called {layer.role!r}"
    if layer.role in QUERY:
        return _by_head(layer, context, "query", why, "n_heads")
    if layer.role in KEY:
        return _by_head(layer, context, "key", why, "n_kv_heads")
    return None


def _by_head(layer: Layer, context: Context, kind: str, why: str, count: str) -> PartitionRow:
    query = context.siblings.of(layer, QUERY) if count == "n_kv_heads" else None
    size = head_rows(layer, count, query, context.given, find_heads(layer.ancestors))
    cut = Partition.columns if layer.transposed else Partition.rows
    partition = cut(layer.shape, size=size)
    return make_row(layer, kind, "head", f"{why}, {layer.fan_out // size} x {size}", partition)


def _fused_rule(layer: Layer, context: Context) -> PartitionRow | None:
    if len(layer.shape) != 2 or layer.role not in FUSED | FUSED_BY_GROUP:
        return None
    holder = layer.ancestors[1] if len(layer.ancestors) > 1 else None
    holder_type = type(holder).__name__
    if holder_type.startswith("CodeGen"):
        return make_row(layer, "qkv", "row", "CodeGen's own order of heads")
    found = find_heads(layer.ancestors)
    if getattr(holder, "is_cross_attention", False) is True:
        return _cross_attention(layer, context, found)
    grouped = layer.role in FUSED_BY_GROUP or (
        holder_type.startswith("GPTBigCode") and not getattr(holder, "multi_query", True)
    )
    partition = fused_partition(layer, context.given, found, grouped=grouped)
    order = "by key head" if grouped else "queries, keys, values"
    return make_row(layer, "qkv", "head, head, row", f"called {layer.role!r}, {order}", partition)


def _cross_attention(layer: Layer, context: Context, found: Heads) -> PartitionRow:
    """Return how GPT-2's fused keys and values of another sequence are cut."""
    size = context.given.head_dim or found.head_dim
    keys = layer.fan_out // 2
    if size is None or keys % size:
        raise unknown_heads(layer, "head_dim")
    runs = ((keys // size, size), (keys, 1))
    cut = Partition(1, layer.fan_in, layer.fan_out, 1, runs)
    if not layer.transposed:
        cut = Partition(1, 1, layer.fan_out, layer.fan_in, runs)
    return make_row(layer, "kv", "head, row", f"called {layer.role!r}, keys, values", cut)


def _matrix_rule(layer: Layer, _context: Context) -> PartitionRow | None:
    if len(layer.shape) != 2:
        return None
    known = isinstance(layer.module, nn.Linear) or layer.transposed
    why = f"module {layer.module_type}" if known and layer.module else "a matrix, [out, in]"
    if layer.transposed:
        why = f"{why}, [in, out]" if layer.module else "a matrix of GPT-2's, [in, out]"
    return make_row(layer, _matrix_kind(layer), "column" if layer.transposed else "row", why)


def _matrix_kind(layer: Layer) -> str:
    parts, role = layer.parts, layer.role
    inside = parts[:-1]
    if any("expert" in part for part in inside):
        return "expert"
    attention = any("attn" in part or "attention" in part for part in inside)
    kind = next((kind for kind, roles in _KINDS if re.fullmatch(roles, role)), "")
    if kind and not (kind == "output" and len(inside) > 3):
        return kind
    if attention and role != "c_fc":
        return (
            "attention output" if re.search(r"out|dense|c_proj|o_proj|^wo$|^o$", role) else "matrix"
        )
    return "mlp" if any(re.fullmatch(_MLP, part) for part in inside) else "matrix"


def _other_rule(layer: Layer, _context: Context) -> PartitionRow | None:
    return make_row(layer, "other", "vector", "no rule: one for each last dimension")


_RULES: tuple[Rule, ...] = (
    _element_rule,
    _embedding_rule,
    _convolution_rule,
    _expert_rule,
    _head_rule,
    _fused_rule,
    _matrix_rule,
    _other_rule,
)
