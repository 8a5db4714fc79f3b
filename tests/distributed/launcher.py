"""Starts scripts and modules by ``torchrun`` on this machine."""

import os
import subprocess
import sys

_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def launched(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments, on the loopback interface and one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)


def torchrun(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script, or ``-m`` and a module, as ``ranks`` processes."""
    return launched(*_TORCHRUN, "--nproc-per-node", ranks, *arguments)
