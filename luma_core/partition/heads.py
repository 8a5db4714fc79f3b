"""How many attention heads a projection holds, and how wide they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import nn

from luma_core.codecs.segments import Partition, Runs
from luma_core.errors import ConfigurationError
from luma_core.partition.layer import Layer

_ATTRIBUTES = {
    "n_heads": ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads"),
    "n_kv_heads": (
        *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads"),
        "num_query_groups",
    ),
    "head_dim": (
        *("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_kv"),
        *("kv_channels", "d_head"),
    ),
}
"""What modules and configurations call the three numbers."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Head geometry; ``None`` for what is not known.

    Attributes:
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: rows of one head.

    Raises:
        ConfigurationError: a number is not a positive integer.
    """

    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not _is_count(value):
                raise ConfigurationError(f"{item.name}={value!r} must be a positive integer.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def find_heads(ancestors: Sequence[nn.Module]) -> Heads:
    """Return what the modules around a projection say, and their configurations after them."""
    sources: list[object] = [*ancestors]
    sources += [config for module in ancestors if (config := getattr(module, "config", None))]
    found: dict[str, int] = {}
    for key, names in _ATTRIBUTES.items():
        values = (getattr(source, name, None) for source in sources for name in names)
        value = next((value for value in values if _is_count(value)), None)
        if value is not None:
            found[key] = value
    if _is_multi_query(sources):
        found["n_kv_heads"] = 1
    return Heads(**found)


def _is_multi_query(sources: Sequence[object]) -> bool:
    """Return whether a configuration asks for one key and value head, as Falcon's and others' do.

    Falcon's newer architecture has groups, whatever its ``multi_query`` says.
    """
    for source in sources:
        asked = getattr(source, "multi_query", None)
        if isinstance(asked, bool):
            return asked and not getattr(source, "new_decoder_architecture", False)
    return False


def unknown_heads(layer: Layer, missing: str) -> ConfigurationError:
    """Return the error for a projection whose heads are not known."""
    return ConfigurationError(
        f"parameter {layer.name!r} of shape {list(layer.shape)} holds attention heads, and how "
        f"many is not known: {missing} is missing.",
        hint=f"Give {missing}=..., or overrides={{{layer.name!r}: 'row'}} for one second moment "
        "per row.",
    )


def _misfit(layer: Layer, rows: int, requirement: str) -> ConfigurationError:
    return ConfigurationError(
        f"parameter {layer.name!r} of shape {list(layer.shape)} has {rows} rows of heads; "
        f"{requirement}.",
        hint="Check n_heads, n_kv_heads and head_dim, or give the parameter in overrides.",
    )


def head_rows(layer: Layer, count: str, query: Layer | None, given: Heads, found: Heads) -> int:
    """Return the rows of one head of a query or key projection.

    Args:
        layer: the projection.
        count: the number that counts its heads: ``"n_heads"`` for queries, ``"n_kv_heads"`` for
            keys.
        query: the query projection beside a key projection.
        given: what the caller said, which goes before all else.
        found: what the modules say.

    Raises:
        ConfigurationError: nothing tells, or what is told does not fit the shape.
    """
    rows = layer.fan_out
    for source in (given, found):
        size = source.head_dim
        heads: int | None = getattr(source, count)
        if size is None and heads is not None:
            size = _quotient(layer, rows, heads, count)
        elif size is None and source.n_heads is not None:
            whose = query or layer
            size = _quotient(whose, whose.fan_out, source.n_heads, "n_heads")
        if size is None:
            continue
        if rows % size:
            raise _misfit(layer, rows, f"they must be a multiple of head_dim={size}")
        if source is given and heads is not None and heads * size != rows:
            raise _misfit(layer, rows, f"{count}={heads} heads of {size} make {heads * size}")
        return size
    raise unknown_heads(layer, "n_heads")


def _quotient(layer: Layer, rows: int, heads: int, count: str) -> int:
    if rows % heads:
        raise _misfit(layer, rows, f"they must be a multiple of {count}={heads}")
    return rows // heads


def fused_heads(layer: Layer, given: Heads, found: Heads) -> tuple[int, int, int]:
    """Return query heads, key heads and rows per head of a fused query, key, value projection.

    Raises:
        ConfigurationError: nothing tells, or what is told does not fit the shape.
    """
    rows = layer.fan_out
    n_heads = given.n_heads or found.n_heads
    n_kv = given.n_kv_heads or found.n_kv_heads
    size = given.head_dim or (None if given.n_heads else found.head_dim)
    if n_heads is None:
        raise unknown_heads(layer, "n_heads")
    if n_kv is None and size is not None:
        n_kv = (rows // size - n_heads) // 2
    if n_kv is None:
        # Without a word on groups, only as many keys as queries is certain, and only where a third
        # of the rows is as wide as the input: other counts could divide the rows as well.
        if rows != 3 * layer.fan_in:
            raise unknown_heads(layer, "n_kv_heads")
        n_kv = n_heads
    heads = n_heads + 2 * n_kv
    if n_kv < 1 or rows % heads or (size is not None and heads * size != rows):
        wide = f" of {size}" if size else ""
        raise _misfit(layer, rows, f"{n_heads} query and 2 * {n_kv} other heads{wide} do not fit")
    return n_heads, n_kv, rows // heads


def fused_partition(layer: Layer, given: Heads, found: Heads, *, grouped: bool) -> Partition:
    """Return one segment per query and key head and per value row of a fused projection.

    Args:
        layer: the projection.
        given: what the caller said.
        found: what the modules say.
        grouped: whether rows are ordered by key head, its queries first, as in GPT-NeoX and Falcon;
            else all queries come first, then all keys, then all values.

    Raises:
        ConfigurationError: the heads are not known or do not fit.
    """
    n_heads, n_kv, size = fused_heads(layer, given, found)
    if grouped and n_heads % n_kv:
        raise _misfit(layer, layer.fan_out, f"{n_heads} query heads do not form {n_kv} groups")
    groups = n_kv if grouped else 1
    runs: Runs = (
        (n_heads // groups, size),
        (n_kv // groups, size),
        (n_kv // groups * size, 1),
    )
    if layer.transposed:
        return Partition(1, layer.fan_in, layer.fan_out, 1, runs * groups)
    return Partition(groups, 1, layer.fan_out // groups, layer.fan_in, runs)
