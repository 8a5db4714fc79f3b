"""A model's partition as a table that people can check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from luma_core.codecs.segments import Partition


@dataclass(frozen=True)
class PartitionRow:
    """How one parameter is cut.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        kind: what it was taken for, such as ``query`` or ``embedding``.
        per: what has one second moment: ``head``, ``row``, ``column``, ``element``, ...
        why: the rule that matched.
        partition: its segments.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    per: str
    why: str
    partition: Partition


@dataclass(frozen=True)
class PartitionTable:
    """How every parameter of a model is cut; ``print`` it, or look up rows by name.

    Attributes:
        rows: one for each parameter, in the model's order.
    """

    rows: tuple[PartitionRow, ...]

    @cached_property
    def by_name(self) -> Mapping[str, PartitionRow]:
        """The rows by parameter name."""
        return {row.name: row for row in self.rows}

    def __iter__(self) -> Iterator[PartitionRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> PartitionRow:
        return self.by_name[name]

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(row.shape) for row in self.rows)

    @property
    def segments(self) -> int:
        """Second moments of all parameters."""
        return sum(row.partition.segments for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        rows = [
            {**asdict(row), "shape": list(row.shape), "partition": row.partition.to_dict()}
            | {"segments": row.partition.segments}
            for row in self.rows
        ]
        return {"elements": self.elements, "segments": self.segments, "parameters": rows}

    def __str__(self) -> str:
        lines = [("parameter", "shape", "kind", "one v per", "v values", "rule")]
        lines += [
            (
                row.name,
                "x".join(map(str, row.shape)) or "-",
                row.kind,
                row.per,
                f"{row.partition.segments:,}",
                row.why,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = "\n".join(
            "  ".join(
                cell.rjust(width) if column == 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return (
            f"{text}\n{len(self):,} parameters of {self.elements:,} elements, "
            f"{self.segments:,} values of v"
        )
