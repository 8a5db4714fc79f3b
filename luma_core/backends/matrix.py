"""Which backends have kernels of which rules and codecs, as their tables say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from luma_core.backends.native import NATIVE
from luma_core.backends.triton import TRITON
from luma_core.catalog import ALGORITHMS, import_home
from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    Codec,
    CoStateM,
    LogV,
    Luma16M,
    Luma16V,
    Partition,
    RootV,
    SegmentMean,
    TableM,
)
from luma_core.rules import AdamMiniRule, Rule

_SIGNED = (FP32(), BF16(), Luma16M(), FP8E4M3(), TableM(), CoStateM())
_SQUARES = (FP32(), BF16(), Luma16V(), RootV(), LogV())
_SHAPE = (64, 128)


class KernelRow(NamedTuple):
    """A rule, the codecs of its moments in order, and who has kernels of them.

    Attributes:
        rule: name of the rule's class.
        codecs: names of codecs.
        native: why the native library has none; empty if it has one.
        triton: the same of the Triton kernels.
    """

    rule: str
    codecs: tuple[str, ...]
    native: str
    triton: str

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends that have a kernel."""
        found = {"native": self.native, "triton": self.triton}
        return tuple(name for name, why_not in found.items() if not why_not)


def kernel_rows() -> list[KernelRow]:
    """Return a row for every rule and every codecs of its moments, in blocks of 128.

    What needs a library or package that is missing here says so; devices do not matter.
    """
    rows = []
    for rule, codecs in _instances():
        found = []
        for backend in (NATIVE, TRITON):
            why_not = backend.why_not_installed()
            found.append(why_not or backend.why_no_kernel(rule, codecs))
        names = tuple(codec.name for codec in codecs.values())
        rows.append(KernelRow(type(rule).__name__, names, *found))
    return rows


def _instances() -> Iterator[tuple[Rule, dict[str, Codec]]]:
    by_row = SegmentMean(partition=Partition.rows(_SHAPE))
    rules = (import_home(entry.rule)() for entry in ALGORITHMS)
    for rule in {type(rule): rule for rule in rules}.values():
        known: list[tuple[Codec, ...]] = [
            _SIGNED if spec.kind == "signed" else _SQUARES for spec in rule.moments
        ]
        if isinstance(rule, AdamMiniRule):
            known[1] = (by_row,)
        for codecs in product(*known):
            yield rule, dict(zip(rule.moment_names, codecs, strict=True))


def kernel_table() -> list[list[str]]:
    """Return `kernel_rows` as lines of text: the rules and first moments by the second moments.

    The first line is the header. Backends without a kernel are left out; PyTorch steps all.
    """
    rows = kernel_rows()
    seconds = list(dict.fromkeys(_second(row) for row in rows))
    lines = {(row.rule, row.codecs[0]): dict.fromkeys(seconds, "") for row in rows}
    for row in rows:
        found = ", ".join(row.backends) or "-"
        lines[row.rule, row.codecs[0]][_second(row)] = found
    header = ["rule", "first moment", *seconds]
    return [header, *([*key, *cells.values()] for key, cells in lines.items())]


def _second(row: KernelRow) -> str:
    return row.codecs[1] if len(row.codecs) > 1 else "none"
