"""Memory is bounded by chunks and single tensors, not by the checkpoint."""

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint.format.compression import CHUNK_BYTES
from luma_core.checkpoint.storage.file_reader import FileReader
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.codecs import FP32
from luma_core.state import ParameterState

TENSORS = 12
SHAPE = (48, 32768)


class Watched(Mapping[str, torch.Tensor]):
    """Makes a tensor whenever one is asked for, and counts those still alive."""

    def __init__(self):
        self.alive = 0
        self.most = 0

    def _gone(self):
        self.alive -= 1

    def __getitem__(self, key):
        tensor = torch.rand(SHAPE)
        weakref.finalize(tensor, self._gone)
        self.alive += 1
        self.most = max(self.most, self.alive)
        return tensor

    def __iter__(self):
        return iter(["exp_avg.value"])

    def __len__(self):
        return 1


class ManyTensors:
    algorithm = "luma"
    named = True

    def __init__(self):
        self.fields = Watched()

    def parameter_names(self):
        return [f"p{index}" for index in range(TENSORS)]

    def group_options(self):
        return [{}]

    def parameter_state(self, name):
        codecs = {"exp_avg": FP32()}
        return ParameterState(name, SHAPE, "float32", 0, 1, codecs=codecs, fields=self.fields)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_saving_asks_for_tensors_when_their_turn_comes_and_lets_them_go(tmp_path, compression):
    source = ManyTensors()
    manifest = checkpoint.save(tmp_path, optimizer=source, compression=compression)
    assert manifest.summary.state_bytes == TENSORS * (4 * 48 * 32768 + 3 * 8)
    assert source.fields.most <= 2


def test_reading_asks_the_store_for_one_chunk_at_a_time(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, optimizer=ManyTensors())
    opened = checkpoint.open(tmp_path)
    read_range, read_whole = LocalStore.read_range, FileReader.read
    lengths = {"range": 0, "whole": 0}

    def watched(kind, function):
        def wrapped(self, *arguments):
            start, stop = [value for value in arguments if isinstance(value, int)]
            lengths[kind] = max(lengths[kind], stop - start)
            return function(self, *arguments)

        return wrapped

    monkeypatch.setattr(LocalStore, "read_range", watched("range", read_range))
    monkeypatch.setattr(FileReader, "read", watched("whole", read_whole))
    opened.read_checked((), ["optimizer"], put=pytest.fail)
    read = []
    opened.read_checked(["optimizer"], (), put=lambda entry, tensor: read.append(entry.name))
    assert sorted(read) == sorted(f"p{index}/exp_avg.value" for index in range(TENSORS))
    _ = opened.parameter_state("p3").fields["exp_avg.value"]
    assert all(0 < length <= CHUNK_BYTES for length in lengths.values()), lengths


PEAK = """
import json, sys
from pathlib import Path
import torch
from luma_core import checkpoint
from luma_core.codecs import FP32
from luma_core.state import ParameterState

SHAPE, COUNT, BOUND = (64, 32768), 45, 128 << 20

class Source:
    algorithm, named = "luma", True
    def parameter_names(self):
        return [f"p{i}" for i in range(COUNT)]
    def group_options(self):
        return [{}]
    def parameter_state(self, name):
        fields = {"exp_avg.value": torch.rand(SHAPE)}
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

url, options = sys.argv[1], {"max_memory_bytes": BOUND}
shards = {"max_shard_bytes": 1 << 26, "compression": sys.argv[2]}
print(json.dumps({
    "save": peak(lambda: checkpoint.save(url, optimizer=Source(), **shards, **options)),
    "verify": peak(lambda: checkpoint.verify(url, **options)),
    "load": peak(lambda: checkpoint.load(url, **options)),
    "bytes": checkpoint.open(url).manifest.summary.state_bytes,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_memory_of_a_process_stays_within_the_bound(tmp_path, compression):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "c", compression], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("bytes") > 350 << 20
    # Modules that are imported on first use, and what allocators keep back, count as well.
    assert max(found.values()) < (128 << 20) + (64 << 20), found
