"""FSDP1's flat parameters train, and their state is saved under the model's names."""

from pathlib import Path

import pytest

from luma_core import checkpoint

from .harness import run

LAYOUTS = ["flat", "orig", "flat-mesh", "orig-mesh"]


def test_flat_parameters_train_and_their_state_is_restored(tmp_path: Path) -> None:
    cases = [
        "steps_like_adamw:flat",
        "resumes_exactly:orig",
        "bfloat16_keeps_float32_moments",
        "what_cannot_work_is_refused",
        "save:flat,luma",
        "load:flat,luma",
    ]
    run(2, tmp_path, "fsdp1_cases", cases)
    manifest = checkpoint.open(tmp_path / "flat,luma").manifest
    assert {entry.name: entry.shape for entry in manifest.parameters}["0.weight"] == (70, 48)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_another_number_of_processes_loads_it(tmp_path: Path) -> None:
    saved = [f"{layout},{kind}" for layout in LAYOUTS for kind in ("luma", "float", "turbo")]
    others = [
        f"{case}:{layout}" for case in ("steps_like_adamw", "resumes_exactly") for layout in LAYOUTS
    ]
    run(2, tmp_path, "fsdp1_cases", [*others, *(f"save:{case}" for case in saved)])
    for world in (1, 2, 3):
        run(world, tmp_path, "fsdp1_cases", [f"load:{case}" for case in saved])


@pytest.mark.heavy
def test_replicas_of_shards_write_one_checkpoint(tmp_path: Path) -> None:
    run(4, tmp_path, "fsdp1_cases", ["save:orig-hybrid,luma"])
    run(2, tmp_path, "fsdp1_cases", ["load:orig-hybrid,luma"])
