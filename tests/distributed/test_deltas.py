"""Checkpoints of many processes have delta chains, lanes and progress, as those of one have."""

import shutil
from pathlib import Path

import pytest

from luma_core import checkpoint
from luma_core.errors import BrokenChainError

from .harness import run

CASES = [
    "chain",
    "another_layout_is_saved_in_full",
    "numbered_steps",
    "one_rank_cannot_use_the_base",
    "lanes_and_progress",
    "refused",
]


def test_many_processes_save_differences(tmp_path: Path) -> None:
    run(2, tmp_path, "delta_cases", CASES)
    opened = checkpoint.open(tmp_path / "2")
    assert opened.manifest.version == 5
    flat = checkpoint.flatten(tmp_path / "2", tmp_path / "flat")
    assert (flat.version, flat.base) == (1, None)
    expected = checkpoint.open(tmp_path / "1")
    for name in opened.parameter_names():
        for key, value in expected.parameter_state(name).fields.items():
            assert opened.parameter_state(name).fields[key].equal(value), (name, key)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(BrokenChainError, match="is missing"):
        checkpoint.open(tmp_path / "2").chain()
