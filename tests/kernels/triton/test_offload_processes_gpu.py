"""On GPUs, FSDP2 and DDP with offloaded state leave the bits of state on the device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

WORKER = Path(__file__).with_name("offload_worker.py")
WORLD = 2


def test_processes_with_offloaded_state_leave_the_bits_of_resident_state(tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("TRITON_INTERPRET", None)
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        printed = [process.communicate(timeout=360)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for text in printed:
        assert "\nEQUAL " in text, text[-3000:]
