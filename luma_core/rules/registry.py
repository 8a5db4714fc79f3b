"""Update rules by the algorithm whose state they describe."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from luma_core import catalog
from luma_core.rules.base import Rule


def algorithm_with(moments: Collection[str]) -> str:
    """Return the algorithm whose state has these moments and no more; AdamW's where several do.

    Raises:
        KeyError: there is none.
    """
    fitting = [
        one.name
        for one in catalog.ALGORITHMS
        if set(moments) == {spec.name for spec in catalog.import_home(one.rule).moments}
    ]
    if not fitting:
        raise KeyError(", ".join(moments))
    return "adamw" if "adamw" in fitting else fitting[0]


@cache
def rule_of(algorithm: str) -> Rule | None:
    """Return the update rule of an algorithm; ``None`` where the catalog has none of that name."""
    home = next((one.rule for one in catalog.ALGORITHMS if one.name == algorithm), None)
    rule: Rule | None = None if home is None else catalog.import_home(home)()
    return rule
