"""Cases of `test_sharded_steps.py`."""

from pathlib import Path

import torch
from runs import FLAT, Run, assert_same, mesh_of_world


def same_bits(kind: str, folder: Path) -> None:
    mesh = mesh_of_world()
    sharded = Run(kind, mesh).steps(20)
    assert_same(sharded.tensors(), Run(kind).steps(20).tensors())


def same_bits_bfloat16(kind: str, folder: Path) -> None:
    mesh = mesh_of_world()
    sharded = Run(kind, mesh, dtype=torch.bfloat16).steps(20)
    assert_same(sharded.tensors(), Run(kind, dtype=torch.bfloat16).steps(20).tensors())


def same_bits_flat(kind: str, folder: Path) -> None:
    mesh = mesh_of_world()
    sharded = Run(kind, mesh, shapes=FLAT).steps(20)
    assert_same(sharded.tensors(), Run(kind, shapes=FLAT).steps(20).tensors())
