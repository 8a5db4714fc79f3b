"""Training sharded over two processes: its state is made and continued from by PyTorch."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luma_core import checkpoint, convert

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]
RANKS = 2


def run(kind, task, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = str(Path(__file__).with_name("fsdp_driver.py"))
    logs = [(folder / f"{rank}.log").open("wb") for rank in range(RANKS)]
    running = [
        subprocess.Popen(
            [sys.executable, driver, kind, task, str(rank), str(RANKS), str(port), str(folder)],
            stdout=log,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=100) for process in running]
    finally:
        for process, log in zip(running, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    assert codes == [0] * RANKS, (folder / "0.log").read_text()[-3000:]


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
