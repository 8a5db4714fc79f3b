"""Runs cases on several processes of this machine, joined by gloo through a file."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_CASES = HERE / "cases"
_LIMIT_SECONDS = 110

# Each process is forked from one that has imported these, which takes longer than most cases.
# None of them starts a thread or a CUDA context, and that process does nothing else.
_IMPORTED = [
    "pytest",
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "luma_core",
    "luma_core.checkpoint",
    "luma_core.convert",
]
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(_IMPORTED)


def start(
    world: int, folder: Path, module: str, cases: Sequence[str], *, timeout_seconds: int = 60
) -> list[BaseProcess]:
    """Start ``world`` processes that run functions of a module in ``cases``."""
    folder.mkdir(parents=True, exist_ok=True)
    # One after the other they may use the same folder, but never the same rendezvous.
    (folder / "rendezvous").unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        # They look for modules where this process does, and keep the environment of the first.
        patch.syspath_prepend(HERE)
        patch.syspath_prepend(_CASES)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        from worker import work

        started = [
            _processes.Process(
                target=work, args=(rank, world, timeout_seconds, folder, module, tuple(cases))
            )
            for rank in range(world)
        ]
        for process in started:
            process.start()
    return started


def finish(processes: list[BaseProcess]) -> None:
    """Wait for processes; end those that take too long."""
    end = time.monotonic() + _LIMIT_SECONDS
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def run(world: int, folder: Path, module: str, cases: Sequence[str]) -> None:
    """Run cases on ``world`` processes; fail with what any of them raised."""
    finish(start(world, folder, module, cases))
    printed = [_printed(folder / f"{rank}.log") for rank in range(world)]
    found = [_results(folder / f"result-{rank}.json") for rank in range(world)]
    failures = [
        f"{name} on rank {rank} of {world}:\n{text}\n{printed[rank]}"
        for rank, results in enumerate(found)
        for name, text in results.items()
        if text
    ]
    # A process that fails closes its connections, and then all others fail too.
    failures.sort(key=lambda text: "gloo/transport" in text)
    assert not failures, failures[0]
    for rank, results in enumerate(found):
        assert list(results) == list(cases), f"rank {rank} ended early:\n{printed[rank]}"


def _printed(path: Path) -> str:
    """Return the end of what a process printed."""
    return path.read_text()[-3000:] if path.exists() else ""


def _results(path: Path) -> dict[str, str]:
    """Return, and remove, what a process wrote: what each case raised, or nothing."""
    results = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    return results
