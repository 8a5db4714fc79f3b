"""``python -m benchmarks.offload_tables`` writes what was measured into docs/offload.md.

It reads `benchmarks/results/offload_*.json` and replaces what stands between the two marks.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "offload.md"
BEGIN, END = "<!-- python -m benchmarks.offload_tables: begin -->\n", "<!-- end -->\n"
MIB = 1 << 20


def steps(result: dict[str, Any]) -> list[str]:
    """Return the table of steps without a model."""
    link = result["link"]["duplex"] / 1e9
    lines = [
        f"**Steps alone**, {result['device']}, llama1b, bfloat16; the link carried {link:.1f} GB/s",
        "each way at once. *of link* is the step's time over that of moving its state both ways.",
        "",
        "| optimizer | step, ms | of link | state, MiB | of it on the GPU, MiB | equal bits |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in result["steps"]:
        share = "-" if row["link_share"] is None else f"{row['link_share']:.2f}"
        equal = {None: "-", True: "yes", False: "no"}[row["identical"]]
        lines.append(
            f"| {row['name']} | {row['step_ms']:.1f} | {share} | {row['state_bytes'] / MIB:,.0f} "
            f"| {row['device_bytes'] / MIB:,.0f} | {equal} |"
        )
    return lines


def training(result: dict[str, Any]) -> list[str]:
    """Return the table of whole training steps."""
    lines = [
        "**Training steps** of a Llama of that size, 16,384 tokens each.",
        "",
        "| optimizer | step, ms | ratio | peak GPU memory, MiB |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['name']} | {row['step_ms']:.1f} | {row['ratio']:.3f} "
        f"| {row['peak_bytes'] / MIB:,.0f} |"
        for row in result["training"]
    ]
    return lines


def disk(result: dict[str, Any]) -> list[str]:
    """Return the table of steps with state on disk."""
    state = result["state_bytes"] / MIB
    step, plain = (median(result[f"{name}_seconds"]) for name in ("step", "disk"))
    ways = [f"{state / result[f'{name}_seconds']:.0f}" for name in ("save", "load")]
    load = " to ".join(f"{value:.1f}" for value in sorted(result["load"]))
    return [
        f"**On disk**, LUMA on {result['cores']} CPU cores; the machine's load was {load}.",
        "*disk* reads and writes as many bytes at once without stepping. *save* and *load* are of",
        "a checkpoint of all state, not compressed, and read and write as many bytes too.",
        "",
        "| parameters | state, MiB | memory, MiB | step, MiB/s each way "
        "| disk | of disk | save | load |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| {result['parameters']:,} | {state:,.0f} | {result['peak_bytes'] / MIB:,.0f} "
        f"| {state / step:.0f} | {state / plain:.0f} | {result['of_disk']:.2f} "
        f"| {' | '.join(ways)} |",
    ]


def page(results: list[dict[str, Any]]) -> str:
    """Return all tables of results, those of each kind in the order given."""
    kinds = {"offload": (steps, training), "offload_disk": (disk,)}
    tables = [
        table(result)
        for result in results
        for table in kinds.get(result.get("benchmark", ""), ())
        if table is not training or result.get("training")
    ]
    return "\n".join("\n".join([*table, ""]) for table in tables)


def main() -> None:
    """Write the tables."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("offload*.json"))]
    found.sort(key=lambda result: str(result.get("benchmark")))
    text = TARGET.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    TARGET.write_text(f"{head}{BEGIN}\n{page(found)}\n{END}{tail}")


if __name__ == "__main__":
    main()
