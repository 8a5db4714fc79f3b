"""Runs a script as several processes that find each other at a port of this machine."""

import socket
import subprocess
import sys
from pathlib import Path


def run_ranks(script: Path, *arguments: object, ranks: int, folder: Path) -> None:
    """Run ``script ARGUMENTS... RANK RANKS PORT FOLDER`` for each rank; all must succeed.

    What they print goes to ``RANK.log`` in the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [(folder / f"{rank}.log").open("wb") for rank in range(ranks)]
    running = [
        subprocess.Popen(
            [sys.executable, script, *map(str, [*arguments, rank, ranks, port, folder])],
            stdout=log,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=100) for process in running]
    finally:
        for process, log in zip(running, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    failed = [rank for rank, code in enumerate(codes) if code]
    assert not failed, (folder / f"{failed[0]}.log").read_text()[-3000:]
