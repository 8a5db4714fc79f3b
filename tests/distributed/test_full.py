"""The whole state of a sharded model goes into one file and back, by PyTorch's own tools."""

from pathlib import Path

import pytest

from .harness import run

KINDS = ["luma", "turbo_5bit", "mini", "lamb"]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.heavy)])
def test_one_file_restores_every_bit(world: int, tmp_path: Path) -> None:
    run(world, tmp_path, "full_cases", [f"round_trip:{kind}" for kind in KINDS])


@pytest.mark.parametrize(
    "kinds", [["luma", "mini"], pytest.param(KINDS, marks=pytest.mark.heavy)], ids=["some", "all"]
)
def test_other_layouts(kinds: list[str], tmp_path: Path) -> None:
    cases = ["tensor_parallel", "plain", "before_the_first_step"]
    run(4, tmp_path, "full_cases", [f"{case}:{kind}" for case in cases for kind in kinds])
