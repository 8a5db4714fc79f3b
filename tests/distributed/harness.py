"""Runs cases on several processes of this machine, joined by gloo through a file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
_LIMIT_SECONDS = 110


def start(
    world: int, folder: Path, module: str, cases: Sequence[str], *, timeout_seconds: int = 60
) -> list[subprocess.Popen]:
    """Start ``world`` processes that run functions of a module beside this one."""
    folder.mkdir(parents=True, exist_ok=True)
    # One after the other they may use the same folder, but never the same rendezvous.
    (folder / "rendezvous").unlink(missing_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "worker.py",
                *map(str, (rank, world, timeout_seconds)),
                folder,
                module,
                *cases,
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Wait for processes and return what they printed."""
    try:
        return [process.communicate(timeout=_LIMIT_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def run(world: int, folder: Path, module: str, cases: Sequence[str]) -> None:
    """Run cases on ``world`` processes; fail with what any of them raised."""
    processes = start(world, folder, module, cases)
    printed = finish(processes)
    found = [_results(folder / f"result-{rank}.json") for rank in range(world)]
    failures = [
        f"{name} on rank {rank} of {world}:\n{text}\n{printed[rank][-3000:]}"
        for rank, results in enumerate(found)
        for name, text in results.items()
        if text
    ]
    # A process that fails closes its connections, and then all others fail too.
    failures.sort(key=lambda text: "Connection closed by peer" in text)
    assert not failures, failures[0]
    for rank, results in enumerate(found):
        assert list(results) == list(cases), f"rank {rank} ended early:\n{printed[rank][-3000:]}"


def _results(path: Path) -> dict[str, str]:
    """Return, and remove, what a process wrote: what each case raised, or nothing."""
    results = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    return results
