"""Every example runs, at toy size."""

import re
import subprocess
from pathlib import Path

import pytest

from luma_core import checkpoint

from .launcher import launched, torchrun

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_example_is_run_here() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"tiny"}
    frameworks = {"trainer", "lightning_module", "accelerate_loop"}
    assert found == {"ddp", "fsdp2_dcp", "muon", *frameworks}


def test_ddp() -> None:
    losses = printed(torchrun(2, EXAMPLES / "ddp.py", 12))
    found = [float(x) for x in re.findall(r"loss ([\d.]+)", losses)]
    assert len(found) == 12
    assert found[-1] < found[0]


def test_muon(tmp_path: Path) -> None:
    lines = printed(launched(EXAMPLES / "muon.py", tmp_path, 12))
    assert "embedding.weight" in lines
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", lines)]
    assert losses[-1] < losses[0]
    assert checkpoint.open(tmp_path / "state").manifest.algorithm == "muon"


def test_fsdp2_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script = EXAMPLES / "fsdp2_dcp.py"
    first = printed(torchrun(2, script, tmp_path / "run", 3))
    assert re.findall(r"step (\d+)", first) == ["0", "1", "2"]
    again = printed(torchrun(1, script, tmp_path / "run", 2))
    assert re.findall(r"step (\d+)", again) == ["3", "4"]


@pytest.mark.parametrize("name", ["lightning_module", "accelerate_loop"])
def test_frameworks(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.partition("_")[0])
    printed(launched(EXAMPLES / f"{name}.py", tmp_path, 3))
    assert checkpoint.open(tmp_path / "state").manifest.summary.step == 3


def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    printed(launched(EXAMPLES / "trainer.py", tmp_path, 3))
    manager = checkpoint.CheckpointManager(tmp_path / "state")
    assert manager.latest() == 3
    assert manager.open().manifest.summary.step == 3
