"""Several processes convert to the bytes that one process writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import checkpoint
from luma_core.convert import convert, open_source
from luma_core.convert.formats.luma import EncodedState

from .cases.convert_cases import SHARD_BYTES
from .harness import run
from .launcher import torchrun


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """AdamW state of matrices and vectors in ``a.pt``, and as a checkpoint in ``c``."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(96 + 16 * i, 112 + 16 * i) for i in range(4)))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    model(torch.randn(4, 96)).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "c", to="luma")
    return tmp_path


def alone(folder: Path, source: str, codec: str) -> Path:
    """Return what one process writes."""
    target = folder / f"{source}-{codec}"
    opened = open_source(folder / source)
    state = EncodedState(opened, block_size=128, seed=3, codec=codec)
    checkpoint.save(target, optimizer=state, max_shard_bytes=SHARD_BYTES)
    return target


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name != "luma.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    left, right = (checkpoint.open(folder).manifest for folder in (one, other))
    assert replace(left, created=right.created) == right


@pytest.mark.parametrize(
    ("world", "cases"),
    [
        (2, [("a.pt", "luma16")]),
        pytest.param(3, [("a.pt", "turbo"), ("c", "turbo-8bit")], marks=pytest.mark.heavy),
    ],
)
def test_files_have_the_bytes_of_one_process(
    world: int, cases: list[tuple[str, str]], state: Path
) -> None:
    run(world, state, "convert_cases", [f"together:{s},{c}" for s, c in cases] + ["refused"])
    for source, codec in cases:
        expected = alone(state, source, codec)
        assert len(list(expected.glob("*.safetensors"))) >= world
        assert_same_files(expected, state / f"{source}-{codec}-{world}")
    reports = {(state / f"report-{rank}").read_text() for rank in range(world)}
    assert len(reports) == 1


@pytest.mark.heavy
def test_one_process_that_fails_fails_all(state: Path) -> None:
    run(2, state, "convert_cases", ["one_fails"])
    assert not checkpoint.exists(state / "failed")


@pytest.mark.heavy
def test_torchrun_converts_and_fails_with_an_exit_code(state: Path) -> None:
    command = ["-m", "luma_client", "convert", state / "a.pt"]
    done = torchrun(2, *command, state / "t", "--to", "luma", "--seed", 0, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["parameters"] for line in done.stdout.splitlines()] == [8]
    assert_same_files(state / "c", state / "t")
    done = torchrun(2, *command, state / "t", "--to", "luma")
    assert done.returncode != 0
    assert "Choose another DST" in done.stderr
