"""State of PyTorch's optimizers is saved and loaded by many processes, as it is."""

from pathlib import Path

from .harness import run

CASES = ["sharded_and_back", "alone_is_refused"]


def test_many_processes_save_adamw(tmp_path: Path) -> None:
    run(2, tmp_path, "any_cases", CASES)
