"""State saved through DCP on 4 processes is the same on any other number."""

from pathlib import Path

import pytest

from .harness import run

KINDS = ["luma", "turbo_5bit", "mini", "lamb"]


@pytest.mark.parametrize(
    ("kinds", "worlds"),
    [
        (["luma"], [2]),
        pytest.param(KINDS, [1, 2, 3, 8], marks=[pytest.mark.heavy, pytest.mark.timeout(600)]),
    ],
    ids=["one", "all"],
)
def test_resharding_is_exact(kinds: list[str], worlds: list[int], tmp_path: Path) -> None:
    saves = [
        *(f"save:{kind}" for kind in kinds[:-1]),
        f"save_later:{kinds[-1]}",
        "save_model",
        "older:luma",
    ]
    run(4, tmp_path, "dcp_cases", saves)
    for world in worlds:
        run(world, tmp_path, "dcp_cases", [*(f"load:{kind}" for kind in kinds), "load_model"])
