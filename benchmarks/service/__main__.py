"""``python -m benchmarks.service``: all rows, or those of some groups."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.service.processes import binary
from benchmarks.service.rows import GROUPS, Job, Row


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes and counts")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--nginx", default=binary("nginx"), help="program; else that of the path")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def measure(given: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the groups that were chosen, each as soon as it is known."""
    for name in given.only:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="luma-service-") as folder:
            job = Job(Path(folder), given.scale, given.rounds, given.nginx)
            rows = GROUPS[name](job)
            if isinstance(rows, str):
                print(f"{name}: skipped: {rows}", flush=True)
                continue
            yield from rows


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    target = ""
    if row.target is not None:
        verdict = "met" if row.met else "MISSED"
        target = f"{'<=' if row.at_most else '>='} {row.target:g} {verdict}"
    return f"{row.name:<50}{row.value:>9.2f} {row.unit:<15}{target:<16}{row.note}"


def main() -> None:
    """Measure and print."""
    given = options()
    print(f"scale {given.scale:g}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows = []
    for row in measure(given):
        rows.append({**asdict(row), "met": row.met})
        print(line(row), flush=True)
    if given.json:
        body = {"scale": given.scale, "rounds": given.rounds, "rows": rows}
        given.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
