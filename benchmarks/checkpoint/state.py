"""The moments that are saved: those of a model that was really trained, made large.

A small transformer is trained (`benchmarks.compression`). Its matrices' moments are cut into pieces
of 128 neighbours, which fill a matrix of any size over and over, each time multiplied by another
number. So every block has the spread that training gave it, and no two have the same codes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.compression import Training

SIDE = 4096
PIECE = 128
STEPS = 100
FACTOR = 1.37
"""Between one copy of the pieces and the next; no power of two, which would change no code."""


def train_moments(path: Path) -> None:
    """Train and write the moments of one matrix of ``[SIDE, SIDE]`` to a file."""
    training = Training("LUMA")
    training.train(STEPS)
    torch.save(enlarged(training), path)


def enlarged(training: Training) -> dict[str, Tensor]:
    """Return ``exp_avg`` and ``exp_avg_sq``, float32 ``[SIDE, SIDE]``."""
    states = [state for state in training.optimizer.parameter_states() if len(state.shape) > 1]
    values: dict[str, Tensor] = {}
    for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        pieces = torch.cat([state.decode(moment).reshape(-1, PIECE) for state in states])
        copies = -(-(SIDE**2) // pieces.numel())
        scaled = [pieces * FACTOR ** (power * copy) for copy in range(copies)]
        values[moment] = torch.cat(scaled).reshape(-1)[: SIDE**2].view(SIDE, SIDE).clone()
    return values
