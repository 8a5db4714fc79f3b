"""Runs the rows and prints the table."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoint.measure import Job, Result, dropped, used_memory
from benchmarks.checkpoint.rows import ROWS, Row
from benchmarks.checkpoint.state import SIDE, train_moments
from luma_core.direct import opened_directly

Found = dict[str, list[Result]]
"""Measurements by row, one a round."""

SPARE_BYTES = 1 << 30
"""Of memory beside what a row holds."""


def measure_apart(row: Row, job: Job) -> Result:
    """Measure a row in a process of its own."""
    place = job.folder / row.place
    place.mkdir(exist_ok=True)
    dropped(place)
    arguments = ["--worker", str(ROWS.index(row)), "--folder", str(place)]
    arguments += ["--count", str(job.matrices), "--state", str(job.state)]
    arguments += ["--new", str(job.new_bytes)]
    # Held until the worker has imported what it needs: see `used_memory`.
    memory = used_memory(job.new_bytes and job.new_bytes + row.held * job.matrices * SIDE**2)
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoint", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        del memory
        printed, _ = worker.communicate("go on\n")
    if worker.returncode:
        raise SystemExit(f"{row.name}: its process ended with {worker.returncode}")
    return Result(**json.loads(printed.splitlines()[-1]))


def fits(row: Row, elements: int) -> bool:
    """Return whether there is memory for a row; says so where there is not."""
    needed = row.held * elements + SPARE_BYTES
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    if needed > available:
        print(f"{row.name} is left out: {needed / 1e9:.0f} GB, {available / 1e9:.0f} available")
    return needed <= available


def has_direct(row: Row, folder: Path) -> bool:
    """Return whether the file system can do what a row does; says so where it cannot."""
    if row.place != "direct":
        return True
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        opened = opened_directly(Path(probe.name), "rb")
    if opened is None:
        print(f"{row.name} is left out: this file system has no transfers past the page cache")
        return False
    opened.close()
    return True


def summary(found: Found) -> dict[str, dict[str, float]]:
    """Return the medians of each row, and its ratios to the plain disk and to torch.save."""
    rows: dict[str, dict[str, float]] = {}
    for name, results in found.items():
        seconds = statistics.median(r.seconds for r in results)
        size = results[0].bytes
        row = {"seconds": seconds, "bytes": size, "bytes_per_second": size / seconds}
        row["peak_bytes"] = max(r.peak_bytes for r in results)
        held = [r.held_seconds for r in results if r.held_seconds is not None]
        if held:
            row["held_seconds"] = statistics.median(held)
        stepped = [r.step_seconds for r in results if r.step_seconds is not None]
        if stepped:
            row["step_seconds"] = statistics.median(stepped)
        rows[name] = row
    for name, row in rows.items():
        if plain := rows.get(_plain(name)):
            row["of_plain"] = row["bytes_per_second"] / plain["bytes_per_second"]
        if "torch.save AdamW" in rows:
            row["of_torch_bytes"] = row["bytes"] / rows["torch.save AdamW"]["bytes"]
        whole = rows.get("LUMA save, none" if "LUMA" in name else "DCP save AdamW")
        for kind in ("held", "step"):
            if whole and f"{kind}_seconds" in row:
                row[f"{kind}_of_save"] = row[f"{kind}_seconds"] / whole["seconds"]
    return rows


def _plain(name: str) -> str:
    """Return the row that does as much without us."""
    if " to " in name:
        return "copy of AdamW"
    reads = any(word in name for word in ("load", "read", "verify", "stats"))
    return "plain read" if reads else "plain write, fsync"


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Print a line per row."""
    print(
        f"{'':<24}{'seconds':>9}{'MB':>8}{'MB/s':>7}{'of plain':>10}{'of torch':>10}"
        f"{'peak MiB':>10}{'held s':>8}{'held':>7}{'step s':>8}{'step':>7}"
    )
    for name, row in rows.items():
        columns = [
            f"{name:<24}",
            f"{row['seconds']:>9.2f}",
            f"{row['bytes'] / 1e6:>8.0f}",
            f"{row['bytes_per_second'] / 1e6:>7.0f}",
            f"{row.get('of_plain', float('nan')):>10.2f}",
            f"{row.get('of_torch_bytes', float('nan')):>10.3f}",
            f"{row['peak_bytes'] / 2**20:>10.0f}",
        ]
        for held in ("held", "step"):
            if f"{held}_seconds" in row:
                of_save = row.get(f"{held}_of_save", float("nan"))
                columns.append(f"{row[f'{held}_seconds']:>8.3f}{of_save:>7.3f}")
        print("".join(columns))


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint")
    parser.add_argument("--parameters", type=float, default=1e9, help="elements of the model")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument(
        "--only",
        default="",
        help="rows whose name holds one of these, as in 'save|load', beside the plain",
    )
    parser.add_argument("--cold", action="store_true", help="memory as the system has it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--state", type=Path, help="moments; trained, and kept here, if missing")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--new", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(chosen: list[Row], given: argparse.Namespace, count: int) -> Found:
    """Measure all rows in turns, or those until Ctrl-C; folders go after the last row of each."""
    found: Found = {row.name: [] for row in chosen}
    elements = count * SIDE**2
    left_out: set[str] = set()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="luma-bench-") as folder:
        moments = (given.state or Path(folder) / "moments.pt").resolve()
        if not moments.exists():
            train_moments(moments)
        with contextlib.suppress(KeyboardInterrupt):
            for row, last in turns(chosen) * given.rounds:
                job = Job(Path(folder), count, moments, 0 if given.cold else row.new * elements)
                possible = fits(row, elements) and has_direct(row, job.folder)
                if row.place not in left_out and possible:
                    found[row.name].append(measure_apart(row, job))
                else:
                    left_out.add(row.place)
                if last:
                    shutil.rmtree(Path(folder) / row.place, ignore_errors=True)
    return {name: results for name, results in found.items() if results}


def chosen_rows(words: list[str]) -> list[Row]:
    """Return the rows that are called, or else hold, one of ``words``, and those that these need.

    A row reads what the first one in its place wrote.
    """
    names = {row.name for row in ROWS}
    named = [
        row
        for row in ROWS
        if any(word == row.name if word in names else word in row.name for word in words)
    ]
    places = {row.place for row in named}
    first = {row.place: row for row in reversed(ROWS)}
    needed = [first[place] for place in places]
    whole = places & {"convert"} | {"plain"}
    return [row for row in ROWS if row in named or row in needed or row.place in whole]


def turns(chosen: list[Row]) -> list[tuple[Row, bool]]:
    """Return each row, and whether the next one works in another place."""
    places = [row.place for row in chosen[1:]] + [""]
    return [(row, row.place != after) for row, after in zip(chosen, places, strict=True)]


def main() -> None:
    """Measure one row in this process, or all in others."""
    given = options()
    if given.worker is not None:
        # The first optimizer of a process imports it, which takes seconds.
        importlib.import_module("torch._dynamo")
        print("imported", flush=True)
        input()
        row = ROWS[given.worker]
        job = Job(given.folder, given.count, given.state, given.new)
        print(json.dumps(row.action(job, **row.options)._asdict()))
        return
    count = max(round(given.parameters / SIDE**2), 1)
    chosen = chosen_rows(given.only.split("|"))
    rows = summary(run_all(chosen, given, count))
    print(
        f"{count * SIDE**2} parameters, {given.rounds} rounds, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print_table(rows)
    if given.json:
        body = {
            "parameters": count * SIDE**2,
            "rounds": given.rounds,
            "cold": given.cold,
            "rows": rows,
        }
        given.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
