"""Sharded state on disk gives the bits of sharded state in memory."""

from pathlib import Path

import pytest

from .harness import run

CASES = [
    "same_bits:luma",
    "same_bits:turbo_5bit",
    "saved_and_loaded",
    "pieces_are_loaded_in_place",
    "fully_sharded",
    "steps_together_are_refused",
]


@pytest.mark.heavy
def test_state_on_disk_on_two_processes(tmp_path: Path) -> None:
    run(2, tmp_path, "offload_cases", CASES)
