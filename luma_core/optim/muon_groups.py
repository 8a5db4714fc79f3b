"""Which parameters are matrices for Muon, and which are AdamW's: by options, names and shapes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from luma_core.errors import ConfigurationError, UnsupportedParameterError
from luma_core.optim.options import is_steppable
from luma_core.rules.newton_schulz import Matrices

ALGORITHMS = ("muon", "adamw")
"""What a group's ``algorithm``, and a value of ``overrides``, may be."""

_NO_HIDDEN_LAYER = re.compile(
    r"(\w+_)?(wte|wpe|emb(e?d|edding|eddings)?)(_tokens|_in|_out|_positions)?"
    r"|lm_head|unembed|head|output|score|classifier|router"
)
"""Modules whose matrices are tables or meet a softmax: embeddings, outputs, routers."""


@dataclass(frozen=True)
class MuonRow:
    """What steps one parameter.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        algorithm: one of `ALGORITHMS`.
        why: what decided.
    """

    name: str
    shape: tuple[int, ...]
    algorithm: str
    why: str


@dataclass(frozen=True)
class MuonTable:
    """What steps every parameter; ``print`` it, or look up rows by name.

    Attributes:
        rows: one for each parameter, in the optimizer's order.
    """

    rows: tuple[MuonRow, ...]

    @cached_property
    def by_name(self) -> Mapping[str, MuonRow]:
        """The rows by parameter name."""
        return {row.name: row for row in self.rows}

    def __iter__(self) -> Iterator[MuonRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> MuonRow:
        return self.by_name[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        return {"parameters": [{**asdict(row), "shape": list(row.shape)} for row in self.rows]}

    def __str__(self) -> str:
        lines = [("parameter", "shape", "stepped by", "rule")]
        lines += [
            (row.name, "x".join(map(str, row.shape)) or "-", row.algorithm, row.why)
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def assign_parameters(
    named: Iterable[tuple[str, Tensor]], *, overrides: Mapping[str, str] | None = None
) -> MuonTable:
    """Return what `Muon` steps each parameter with where no group says it.

    Args:
        named: ``model.named_parameters()``.
        overrides: ``"muon"`` or ``"adamw"`` by name pattern, such as ``"*.gate.*"``; the first that
            matches counts.

    Raises:
        ConfigurationError: a value of ``overrides`` is neither.
        UnsupportedParameterError: ``overrides`` gives Muon what is no matrix.
    """
    check_overrides(overrides or {})
    return MuonTable(tuple(assign(name, param, overrides or {}) for name, param in named))


def check_overrides(overrides: Mapping[str, str]) -> None:
    """Check that overrides name algorithms.

    Raises:
        ConfigurationError: one does not.
    """
    for pattern, algorithm in overrides.items():
        if algorithm not in ALGORITHMS:
            raise ConfigurationError(
                f"overrides[{pattern!r}]={algorithm!r} must be one of "
                f"{', '.join(map(repr, ALGORITHMS))}."
            )


def assign(name: str, param: Tensor, overrides: Mapping[str, str]) -> MuonRow:
    """Return what steps one parameter; see `assign_parameters`."""
    shape = () if is_lazy(param) else tuple(param.shape)
    for pattern, algorithm in overrides.items():
        if fnmatch.fnmatchcase(name, pattern):
            if algorithm == "muon":
                check_matrix(name, param)
            return MuonRow(name, shape, algorithm, f"overrides[{pattern!r}]")
    parts = name.split(".")
    if len(shape) < 2:
        return MuonRow(name, shape, "adamw", "fewer than 2 dimensions")
    if 0 in shape or min(Matrices().of(shape)[1:]) < 2 or not is_steppable(param):
        return MuonRow(name, shape, "adamw", "no matrix")
    role = next((part for part in parts[-2:] if _NO_HIDDEN_LAYER.fullmatch(part.lower())), None)
    if role is not None:
        return MuonRow(name, shape, "adamw", f"called {role!r}")
    return MuonRow(name, shape, "muon", "matrix")


def algorithm_of(group: Mapping[str, Any]) -> str | None:
    """Return what a new group says that its parameters are stepped by, if it does.

    Raises:
        ConfigurationError: ``algorithm`` is neither of `ALGORITHMS`, or contradicts ``use_muon``.
    """
    said = group.get("algorithm")
    if said is not None and said not in ALGORITHMS:
        raise ConfigurationError(
            f"algorithm={said!r} of a group must be one of {', '.join(map(repr, ALGORITHMS))}."
        )
    use_muon = group.get("use_muon")
    if use_muon is None:
        return said
    if not isinstance(use_muon, bool):
        raise ConfigurationError(f"use_muon={use_muon!r} of a group must be True or False.")
    found = "muon" if use_muon else "adamw"
    if said not in (None, found):
        raise ConfigurationError(
            f"algorithm={said!r} of a group contradicts its use_muon={use_muon}.",
            hint="Give one of them.",
        )
    return found


def check_matrix(name: str, param: Tensor) -> None:
    """Check that Muon can step a parameter.

    Raises:
        UnsupportedParameterError: it has fewer than two dimensions.
    """
    if not is_lazy(param) and param.dim() < 2:
        raise UnsupportedParameterError(
            f"parameter {name!r} of shape {list(param.shape)} is no matrix, and Muon was told to "
            "step it.",
            hint="Put it into a group with use_muon=False, which AdamW steps.",
        )


def check_split(name: str, param: Tensor, split_rows: int | None) -> None:
    """Check that a matrix can be split into matrices of so many rows.

    Raises:
        ConfigurationError: its rows are no multiple of them.
    """
    if split_rows is None or is_lazy(param):
        return
    rows = param.shape[1] if param.dim() == 3 else param.shape[0]
    if rows % split_rows:
        raise ConfigurationError(
            f"split_rows={split_rows} does not divide the {rows} rows of {name!r}.",
            hint="Give the rows of one head, in a group of the fused projections alone.",
        )
