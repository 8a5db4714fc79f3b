"""Kills processes that save, at random moments; what the drivers and their tests share."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Report = Callable[[int], None]


def run_driver(
    driver: Path, url: object, mode: str, kills: int, environment: dict[str, str] | None = None
) -> Any:
    """Run a driver as a process of its own and return what it printed as JSON."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", driver, url, mode, str(kills), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **here, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def reported(saves: Iterator[tuple[int, Any]], wait: bool, report: Report) -> None:
    """Report the step of each save that returned or, unless they wait, whose handle did."""
    flying = []
    for step, saved in saves:
        if wait:
            report(step)
            continue
        flying.append((step, saved))
        if len(flying) == 2:
            number, handle = flying.pop(0)
            handle.result()
            report(number)


def kill_once(work: Callable[[Report], None], seconds: float, *, until_first: bool) -> int:
    """Kill a process that does some work, and return the last number that it reported, or 0.

    Args:
        work: is given what reports a number.
        seconds: how long the process works.
        until_first: whether that time begins with its first report, so that there is one.
    """
    child, reports = _in_child(lambda told: work(lambda number: _tell(told, number)))
    with reports:
        data = reports.read(8) if until_first else b""
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data += reports.read()
    assert data or not until_first, "the process ended before its first report"
    return int.from_bytes(data[-8:], "little")


def found_by(look: Callable[[], Any]) -> Any:
    """Return plain values that a process of its own finds."""
    child, reports = _in_child(lambda told: os.write(told, json.dumps(look()).encode()))
    with reports:
        data = reports.read()
    os.waitpid(child, 0)
    return json.loads(data)


def _tell(told: int, number: int) -> None:
    os.write(told, number.to_bytes(8, "little"))


def _in_child(work: Callable[[int], Any]) -> tuple[int, BinaryIO]:
    """Run ``work(pipe)`` in a forked process, so that this one never opens a store of its own.

    A child that shares an event loop's descriptors with its parent would disturb it.
    """
    out, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            work(told)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(told)
    return child, os.fdopen(out, "rb")
