"""Loading reads the state once, and changes nothing before all of it is known to be right."""

import threading

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint import writer
from luma_core.checkpoint.local import LocalStore
from luma_core.errors import CorruptCheckpointError


@pytest.fixture
def read_bytes(monkeypatch):
    """Bytes that were read, by name of the file."""
    counts = {}
    lock = threading.Lock()
    read_range, read_into = LocalStore.read_range, LocalStore.read_into

    def count(name, size):
        with lock:
            counts[name] = counts.get(name, 0) + size

    def ranged(self, name, start, stop):
        data = read_range(self, name, start, stop)
        count(name, len(data))
        return data

    def into(self, name, start, out):
        done = read_into(self, name, start, out)
        count(name, done)
        return done

    monkeypatch.setattr(LocalStore, "read_range", ranged)
    monkeypatch.setattr(LocalStore, "read_into", into)
    return counts


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("chunk_bytes", [512, 4 << 20])
def test_every_byte_of_the_state_is_read_once(
    tmp_path, new_run, same, read_bytes, monkeypatch, compression, chunk_bytes
):
    monkeypatch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
    run, other = new_run(), new_run(steps=0)
    extra = {"rng": torch.arange(500), "none": torch.empty(0, 3), "one": torch.tensor(1.5)}
    manifest = checkpoint.save(
        tmp_path, optimizer=run.optimizer, extra=extra, compression=compression,
        max_shard_bytes=5000,
    )  # fmt: skip
    assert len(manifest.files) > 2
    read_bytes.clear()
    loaded = checkpoint.load(tmp_path, optimizer=other.optimizer)
    other.model.load_state_dict(run.model.state_dict())
    assert same(other.snapshot(), run.snapshot())
    assert all(torch.equal(loaded.extra[key], extra[key]) for key in extra)
    for file in manifest.files:
        assert read_bytes[file.name] == file.bytes


@pytest.mark.parametrize("large", [False, True])
def test_state_in_memory_of_its_own(tmp_path, large):
    """Loaded tensors share no memory, whether they were read alone or with their neighbours."""
    from luma_core.optim import LUMA

    def made():
        shape = (1200, 1024) if large else (64, 64)
        params = [(name, torch.nn.Parameter(torch.zeros(shape))) for name in "ab"]
        return LUMA(params, min_compress_elements=8, seed=0)

    source, target = made(), made()
    source.init_state()
    checkpoint.save(tmp_path, optimizer=source, compression="none")
    checkpoint.load(tmp_path, optimizer=target)
    fields = [t for state in target.parameter_states() for t in state.fields.values()]
    for value, tensor in enumerate(fields):
        tensor.fill_(value)
    for value, tensor in enumerate(fields):
        assert bool((tensor == value).all())


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("which", [0, -1])
def test_nothing_changes_where_any_shard_is_wrong(tmp_path, new_run, same, compression, which):
    manifest = checkpoint.save(
        tmp_path, optimizer=new_run().optimizer, compression=compression, max_shard_bytes=3000
    )
    path = tmp_path / manifest.files[which].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    victim = new_run(steps=1, seed=2)
    before = victim.snapshot()
    with pytest.raises(CorruptCheckpointError, match=path.name):
        checkpoint.load(tmp_path, optimizer=victim.optimizer)
    assert same(victim.snapshot(), before)
