"""Training sharded over two processes: its state is made and continued from by PyTorch."""

from pathlib import Path

import pytest
import torch

from luma_core import checkpoint, convert
from tests.ranks import run_ranks

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]


def run(kind, task, folder):
    run_ranks(Path(__file__).with_name("fsdp_driver.py"), kind, task, ranks=2, folder=folder)


@pytest.mark.parametrize("kind", ["fsdp1", "flat", "fsdp2"])
def test_sharded_training_goes_on_from_converted_state(tmp_path, kind):
    """Bit for bit as it would have gone on by itself, from each way to save its state."""
    run(kind, "train", tmp_path)
    # On the CPU, FSDP1's own API gathers wrong values unless parameters are flat.
    other = {"fsdp1": "fsdp1.pt"} if kind == "flat" else {"dcp": "dcp"}
    made = {"whole": "whole.pt", **other}
    for name, path in made.items():
        source = convert.open_source(tmp_path / path)
        assert source.named
        assert {info.name for info in source.parameters()} == {
            "0.weight",
            "0.bias",
            "2.weight",
            "2.bias",
        }
        convert.convert(tmp_path / path, tmp_path / f"luma-{name}", to="luma", codec="fp32")
        assert checkpoint.verify(tmp_path / f"luma-{name}").ok
        to = "dcp" if name == "dcp" else "fsdp"
        convert.convert(tmp_path / f"luma-{name}", tmp_path / f"converted-{name}", to=to)
    run(kind, "resume", tmp_path)
    want = torch.load(tmp_path / "after.pt", weights_only=True)
    before = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name in made:
        got = torch.load(tmp_path / f"after-{name}.pt", weights_only=True)
        assert got.keys() == want.keys()
        for key, weight in want.items():
            assert torch.equal(got[key], weight)
            assert not torch.equal(before[key], weight)
