"""`save_sharded` and `load_sharded` of parameters on any mesh, or on some processes only."""

from pathlib import Path

from luma_core import checkpoint

from .harness import run

SAVED = ["turbo_5bit,2x2", "turbo_5bit,columns", "luma,2x2"]


def test_the_same_mesh_resumes_with_the_same_bits(tmp_path: Path) -> None:
    cases = [f"resumed_on_the_same_mesh:{one}" for one in SAVED]
    run(4, tmp_path, "mesh_cases", cases)
    for one in SAVED:
        url = tmp_path / one.replace(",", "-")
        assert checkpoint.verify(url).ok
        assert checkpoint.open(url).manifest.version == 4
    for world in (2, 1):
        run(world, tmp_path, "mesh_cases", [f"loads_everywhere:{one},columns" for one in SAVED])


def test_tensor_parallel_models_are_saved_whole(tmp_path: Path) -> None:
    run(4, tmp_path, "mesh_cases", ["tensor_parallel_resumes:fsdp", "tensor_parallel_resumes:none"])
