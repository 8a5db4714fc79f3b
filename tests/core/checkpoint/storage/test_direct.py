"""Files are written and read past the page cache where that can be done, and are right anyway."""

import errno
import hashlib
import mmap
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed

from luma_core.checkpoint.format.compression import CHUNK_BYTES
from luma_core.checkpoint.format.shard import PlannedTensor, ShardWriter
from luma_core.checkpoint.read.read_ahead import read_ahead
from luma_core.checkpoint.storage import file_reader
from luma_core.checkpoint.storage.budget import Budget
from luma_core.checkpoint.storage.file_reader import FileReader
from luma_core.checkpoint.storage.file_writer import PIECE_BYTES, FileWriter
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.direct import PAGE_BYTES, is_cached, opened_directly, transfer_memory

CONTENT = os.urandom(1 << 20) * 5
SIZES = (0, 1, PAGE_BYTES, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 5000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x"


@pytest.fixture
def can_be_direct(tmp_path):
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(PAGE_BYTES))
    opened = opened_directly(probe, "rb")
    if opened is None:
        pytest.skip("this file system reads and writes through the page cache only")
    opened.close()


def written(path, data, *, step=1 << 30):
    writer = FileWriter(path)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
    writer.sync()
    writer.close()


def uncached(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [100_003, len(CONTENT)])
def test_what_is_written_comes_back(path, size, step):
    written(path, CONTENT[:size], step=step)
    assert path.read_bytes() == CONTENT[:size]


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(st.tuples(st.integers(0, PIECE_BYTES + 9000), st.booleans()), max_size=5))
def test_pieces_and_flushes_in_any_order(path, steps):
    path.unlink(missing_ok=True)
    writer, done = FileWriter(path), 0
    for size, flush in steps:
        writer.write(memoryview(CONTENT)[:size])
        done += size
        if flush:
            writer.flush()
            assert path.stat().st_size == done
    writer.sync()
    writer.close()
    assert path.read_bytes() == b"".join(CONTENT[:size] for size, _ in steps)


def test_what_a_writer_is_given_may_change_at_once(path):
    writer, data = FileWriter(path), bytearray(CONTENT)
    writer.write(memoryview(data))
    data[:] = bytes(len(data))
    writer.sync()
    writer.close()
    assert path.read_bytes() == CONTENT


def test_state_may_change_once_its_next_piece_is_asked_for(tmp_path):
    """An asynchronous save reads live state: what it has read, a step may overwrite."""
    content = np.frombuffer(CONTENT, np.uint8)[: 3 * CHUNK_BYTES // 4]

    def pieces(_size):
        for _ in range(3):
            live = content.copy()
            yield live
            live[:] = 0

    tensor = PlannedTensor("t", torch.uint8, (3 * len(content),), pytest.fail, pieces=pieces)
    shards = ShardWriter(
        LocalStore(tmp_path),
        compression="none",
        chunk_bytes=len(content),
        generation=0,
        budget=Budget.of(1 << 29),
        tick=lambda _: None,
    )
    file, (entry,) = shards.write("x", "optimizer", [tensor])
    data = (tmp_path / "x").read_bytes()
    assert data[-3 * len(content) :] == content.tobytes() * 3
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert {chunk.crc32 for chunk in entry.chunks} == {zlib.crc32(content)}


@pytest.mark.usefixtures("can_be_direct")
def test_what_is_written_takes_no_page_cache(path):
    written(path, CONTENT)
    with path.open("rb", buffering=0) as file:
        assert not is_cached(file)
        file.read()
        assert is_cached(file)


@pytest.fixture(params=["at opening", "at the first transfer", "later"])
def refused(request, monkeypatch):
    """A file system that cannot pass by its cache, and says so at some time."""
    if request.param == "at opening":
        monkeypatch.setattr(os, "open", _failing_if_direct(os.open, flags_at=1))
    transfers = {"at opening": 0, "at the first transfer": 0, "later": 1}[request.param]
    for name in ("pwrite", "preadv"):
        monkeypatch.setattr(os, name, _refusing(getattr(os, name), transfers))


def _failing_if_direct(function, flags_at):
    def wrapped(*arguments, **options):
        if arguments[flags_at] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return function(*arguments, **options)

    return wrapped


def _refusing(function, allowed):
    left = [allowed]

    def wrapped(file, *arguments):
        flags = Path(f"/proc/self/fdinfo/{file}").read_text()
        if int(re.search(r"flags:\s*(\d+)", flags)[1], 8) & os.O_DIRECT:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EINVAL, "no")
        return function(file, *arguments)

    return wrapped


@pytest.mark.usefixtures("refused")
def test_a_file_system_that_refuses_gets_plain_transfers(path):
    written(path, CONTENT)
    assert path.read_bytes() == CONTENT
    uncached(path)
    memory = transfer_memory(PIECE_BYTES)
    with FileReader(path, direct=True) as reader:
        for start in (0, 5000, PIECE_BYTES):
            stop = start + PIECE_BYTES // 2
            assert reader.read(start, stop, memory) == CONTENT[start:stop]


@pytest.mark.parametrize("read_bytes", [3 * PAGE_BYTES, 3 * PAGE_BYTES + 512, 300])
def test_transfers_that_stop_early_go_on(path, monkeypatch, read_bytes):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(
        os, "pwrite", lambda f, data, at: pwrite(f, data[: 3 * PAGE_BYTES + 512], at)
    )
    written(path, CONTENT[: PIECE_BYTES + 5000])
    monkeypatch.setattr(os, "preadv", lambda f, out, at: min(preadv(f, out, at), read_bytes))
    uncached(path)
    memory = transfer_memory(len(CONTENT))
    with FileReader(path, direct=True) as reader:
        found = reader.read(700, len(CONTENT), memory)
        assert found == CONTENT[700 : PIECE_BYTES + 5000]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_is_told_and_stays(tmp_path, monkeypatch, code):
    pwrite, fatal = os.pwrite, PIECE_BYTES

    def failing(file, data, at):
        if at >= fatal:
            raise OSError(code, os.strerror(code))
        return pwrite(file, data, at)

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "pwrite", failing)
    with store.write("x") as out:
        out.write(CONTENT[: 2 * PIECE_BYTES])
        for use in (out.flush, out.commit, lambda: out.write(CONTENT), out.commit):
            with pytest.raises(OSError, match=re.escape(os.strerror(code))) as told:
                use()
            assert told.value.errno == code
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import errno, resource, signal, sys
from pathlib import Path
from luma_core.checkpoint.storage.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
try:
    with LocalStore(Path(sys.argv[1])).write("x") as out:
        for _ in range(9):
            out.write(bytes(1 << 20))
        out.commit()
except OSError as error:
    sys.exit(7 if error.errno == errno.EFBIG else str(error))
"""


def test_the_systems_own_refusal_in_the_middle_of_an_object_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_discarded_while_it_is_on_its_way(tmp_path):
    for _ in range(20):
        with LocalStore(tmp_path).write("x") as out:
            out.write(CONTENT)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def direct_opened(monkeypatch):
    """Names of files that were opened for direct reads."""
    names = []

    def noted(path, mode):
        names.append(path.name)
        return opened_directly(path, mode)

    monkeypatch.setattr(file_reader, "opened_directly", noted)
    return names


@pytest.mark.usefixtures("can_be_direct")
def test_a_file_is_read_directly_where_the_cache_does_not_have_it(path, direct_opened):
    path.write_bytes(CONTENT)
    memory = transfer_memory(PIECE_BYTES)
    with FileReader(path, direct=True) as reader:
        assert reader.read(0, 9, memory) == CONTENT[:9]
    assert direct_opened == []
    uncached(path)
    with FileReader(path, direct=True) as reader:
        assert reader.read(0, PIECE_BYTES, memory) == CONTENT[:PIECE_BYTES]
    assert direct_opened == ["x"]
    with path.open("rb", buffering=0) as file:
        assert not is_cached(file)


def test_a_file_of_which_nobody_can_tell_counts_as_cached(path, monkeypatch):
    path.write_bytes(b"")
    with path.open("rb", buffering=0) as file:
        assert is_cached(file)
    path.write_bytes(CONTENT)
    uncached(path)

    def refuse(*_arguments, **_options):
        raise OSError(errno.ENODEV, "no maps")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with path.open("rb", buffering=0) as file:
        assert is_cached(file)


@pytest.mark.usefixtures("can_be_direct")
def test_what_will_be_read_again_or_by_others_goes_through_the_cache(
    tmp_path, direct_opened, monkeypatch
):
    store, memory = LocalStore(tmp_path), transfer_memory(PAGE_BYTES)
    (tmp_path / "x").write_bytes(CONTENT)

    def read(**options):
        uncached(tmp_path / "x")
        with store.reader("x", **options) as reader:
            assert reader.read(0, 9, memory) == CONTENT[:9]

    read(again=True)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    read()
    assert direct_opened == []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    read()
    assert direct_opened == ["x"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
def test_memory_of_transfers_is_in_whole_pages_and_no_childs():
    memory = transfer_memory(3 * PAGE_BYTES)
    memory[:] = 1
    address = memory.ctypes.data
    assert address % (2 << 20) == 0
    flags = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert "dc" in flags


class Piece(NamedTuple):
    start: int
    stop: int


def test_reading_ahead_is_in_order_and_uses_few_pieces_of_memory(path, monkeypatch):
    path.write_bytes(CONTENT)
    taken = []

    def counted(size_bytes):
        taken.append(size_bytes)
        return transfer_memory(size_bytes)

    monkeypatch.setattr("luma_core.checkpoint.read.read_ahead.transfer_memory", counted)
    spans = [Piece(start, start + 70_001) for start in range(0, len(CONTENT), 70_001)]
    used = set()
    with FileReader(path, direct=False) as reader:
        found = [
            (span, bytes(data))
            for span, data in read_ahead(
                reader, spans, threads=2, use=lambda span, data: used.add((span.start, len(data)))
            )
        ]
    assert [span for span, _ in found] == spans
    assert b"".join(data for _, data in found) == CONTENT
    assert used == {(span.start, len(data)) for span, data in found}
    assert len(taken) <= 3


def test_an_error_in_using_what_is_read_ends_the_reading(path):
    path.write_bytes(CONTENT)

    def use(span, _data):
        if span.start:
            raise ZeroDivisionError

    with FileReader(path, direct=False) as reader, pytest.raises(ZeroDivisionError):
        list(read_ahead(reader, [Piece(0, 9), Piece(9, 20)], threads=2, use=use))
