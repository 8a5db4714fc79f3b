"""Loading reads the state once, and changes nothing before all of it is known to be right."""

import os
import threading

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint.read.read_ahead import SPAN_BYTES
from luma_core.checkpoint.storage.file_reader import FileReader
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.write import save_run as writer
from luma_core.direct import page_span
from luma_core.errors import CorruptCheckpointError
from luma_core.optim import LUMA


@pytest.fixture
def read_bytes(monkeypatch):
    """Bytes that were read, by name of the file."""
    counts = {}
    lock = threading.Lock()
    read_range, read = LocalStore.read_range, FileReader.read

    def count(name, size):
        with lock:
            counts[name] = counts.get(name, 0) + size

    def ranged(self, name, start, stop):
        data = read_range(self, name, start, stop)
        count(name, len(data))
        return data

    def whole(self, start, stop, memory):
        found = read(self, start, stop, memory)
        count(self.path.name, len(found))
        return found

    monkeypatch.setattr(LocalStore, "read_range", ranged)
    monkeypatch.setattr(FileReader, "read", whole)
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


@pytest.fixture
def read_spans(monkeypatch):
    """What was read of whole files, and where, in order."""
    spans, read = [], FileReader.read

    def noted(self, start, stop, memory):
        spans.append((start, stop))
        return read(self, start, stop, memory)

    monkeypatch.setattr(FileReader, "read", noted)
    return spans


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_tensors_of_many_spans_come_back_from_the_disk(tmp_path, read_spans, compression):
    random = torch.Generator().manual_seed(0)
    sizes = {"odd": (9 << 20) + 4321, "none": 0, "one": 1, "small": 300, "even": 8 << 20}
    extra = {
        name: torch.randint(256, (size,), dtype=torch.uint8, generator=random)
        for name, size in sizes.items()
    }
    extra["odd"][: 5 << 20] = 7
    manifest = checkpoint.save(
        tmp_path, optimizer=LUMA([("p", torch.nn.Parameter(torch.zeros(2)))]), extra=extra,
        compression=compression,
    )  # fmt: skip
    path = next(tmp_path.glob("extra-*"))
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    loaded = checkpoint.load(tmp_path).extra
    assert all(torch.equal(loaded[name], extra[name]) for name in extra)
    file = next(file for file in manifest.files if file.name == path.name)
    spans = sorted(read_spans)
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    assert spans[-1][1] == file.bytes
    for start, stop in spans:
        first, last = page_span(start, stop)
        assert last - first <= SPAN_BYTES
    if compression == "none":
        assert all(stop % SPAN_BYTES == 0 for _, stop in spans[:-1])


@pytest.mark.parametrize("large", [False, True])
def test_state_in_memory_of_its_own(tmp_path, large):
    """Loaded tensors share no memory, whether they were read alone or with their neighbours."""

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
