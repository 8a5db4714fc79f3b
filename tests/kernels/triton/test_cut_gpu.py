"""On a GPU, optimizers over several processes leave the bits of one, with one collective."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

WORKER = Path(__file__).with_name("cut_worker.py")


@pytest.mark.parametrize("world", [2, 3])
def test_processes_leave_the_bits_of_one(world: int, tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("TRITON_INTERPRET", None)
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(tmp_path / "rendezvous")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for text in printed:
        assert text.rstrip().endswith("\nEQUAL"), text[-6000:]
