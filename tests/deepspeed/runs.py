"""DeepSpeed on two ranks of this machine."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks

RANKS = 2
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"
)


def run(task: str, stage: int, folder: Path) -> dict[str, Any]:
    """Do a task of `rank.py` on all ranks and return what the first tells."""
    run_ranks(Path(__file__).with_name("rank.py"), task, stage, ranks=RANKS, folder=folder)
    told: dict[str, Any] = torch.load(folder / f"{task.replace(':', '-')}.told", weights_only=True)
    return told
