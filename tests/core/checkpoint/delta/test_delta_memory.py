"""Differences take no more memory than whole checkpoints, however long the chain."""

import json
import subprocess
import sys

import pytest

PEAK = """
import json, sys
from pathlib import Path
import torch
from luma_core import checkpoint
from luma_core.codecs import FP32
from luma_core.state import ParameterState

SHAPE, COUNT, BOUND, CHAIN = (64, 32768), 20, 128 << 20, 3

class Source:
    algorithm, named = "luma", True
    def __init__(self, step):
        self.step = step
    def parameter_names(self):
        return [f"p{i}" for i in range(COUNT)]
    def group_options(self):
        return [{}]
    def parameter_state(self, name):
        torch.manual_seed(int(name[1:]))
        whole = torch.rand(SHAPE).view(torch.int32)
        fields = {"exp_avg.value": whole.add_(self.step).view(torch.float32)}
        codecs = {"exp_avg": FP32()}
        return ParameterState(name, SHAPE, "float32", 0, 1, codecs=codecs, fields=fields)

def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(key)).split()[1])

def peak(action):
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    action()
    return (kilobytes("VmHWM") - before) << 10

root, options = Path(sys.argv[1]), {"max_memory_bytes": BOUND}
shards = {"max_shard_bytes": 1 << 26}

def save(step):
    base = root / str(step - 1) if step else None
    checkpoint.save(root / str(step), optimizer=Source(step), base=base, **shards, **options)

def states():
    opened = checkpoint.open(last, **options)
    for name in opened.parameter_names():
        found = opened.parameter_state(name).fields["exp_avg.value"]
        if name == "p7":
            want = Source(CHAIN - 1).parameter_state(name).fields["exp_avg.value"]
            assert torch.equal(found, want)

def load():
    opened = checkpoint.open(last, **options)
    opened.read_checked(["optimizer"], (), put=lambda entry, tensor: None)

last = root / str(CHAIN - 1)
for step in range(CHAIN - 1):
    save(step)
print(json.dumps({
    "save": peak(lambda: save(CHAIN - 1)),
    "verify": peak(lambda: checkpoint.verify(last, **options)),
    "load": peak(load),
    "read": peak(states),
    "flatten": peak(lambda: checkpoint.flatten(last, root / "flat", **shards, **options)),
    "bytes": checkpoint.open(last).manifest.summary.state_bytes,
    "chain": checkpoint.open(last).manifest.chain,
    "stored": checkpoint.open(last).manifest.summary.stored_bytes,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_process_stays_within_the_bound(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("bytes") > 160 << 20
    assert found.pop("stored") < 4 << 20
    assert found.pop("chain") == 3
    # Modules that are imported on first use, and what allocators keep back, count as well.
    assert max(found.values()) < (128 << 20) + (64 << 20), found
