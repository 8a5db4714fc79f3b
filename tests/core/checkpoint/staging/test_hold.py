"""What is held for a save behind training: which bytes, and who waits for whom."""

import contextlib
import threading

import pytest
import torch

from luma_core import changes
from luma_core.checkpoint.staging.copy_on_write import Hold, extent, on_several_threads
from luma_core.checkpoint.staging.pool import Copies
from luma_core.checkpoint.staging.tensors import DeviceTensor, HostTensor, Way
from luma_core.errors import ConfigurationError, StateChangedError
from luma_core.optim.offload.files import FileArena

PIECE = 64


def host(hold, tensor, way=Way.BEHIND, **options):
    options = {"piece_bytes": PIECE, "again": False, **options}
    held = HostTensor(hold, "t", tensor, way, Copies(None), **options)
    hold.add(held)
    return held


class Zeros(Copies):
    """Memory that shows what was written to it."""

    def new(self, kind):
        return super().new(kind).zero_()


def read(held):
    return b"".join(bytes(piece) for piece in held.pieces(PIECE))


@pytest.fixture
def hold():
    made = Hold()
    yield made
    made.end()
    assert not changes.anybody_reads()


def test_only_the_pieces_that_a_change_touches_are_copied(hold):
    tensor = torch.arange(1000, dtype=torch.uint8)
    before = bytes(tensor.numpy())
    held = host(hold, tensor)
    hold.begin([])
    changes.before_change([tensor[70:140]])
    tensor[70:140] = 0
    assert [bool(state) for state in held._states[:4]] == [False, True, True, False]
    assert read(held) == before


def test_tensors_of_one_block_are_found_by_any_view_of_it(hold):
    block = torch.arange(256, dtype=torch.uint8)
    some = [host(hold, block[start : start + 50]) for start in (0, 60, 200)]
    hold.begin([])
    changes.before_change([block[40:61]])
    assert [bool(held._copy is not None) for held in some] == [True, True, False]
    changes.before_change([block[110:200], block[250:]])
    assert some[2]._copy is None


def test_a_strided_view_covers_all_that_is_between(hold):
    tensor = torch.zeros(20, 10, dtype=torch.int32)
    assert extent(tensor[:, 3]) == (tensor.data_ptr() + 12, tensor.data_ptr() + 764 + 12)
    first, stop = extent(tensor[:0])
    assert first == stop


def test_memory_that_is_held_already_is_not_held_again(hold):
    block = torch.zeros(100, dtype=torch.uint8)
    host(hold, block[10:50])
    assert not hold.takes(*extent(block[49:60]))
    assert not hold.takes(*extent(block[:11]))
    assert not hold.takes(*extent(block))
    assert not hold.takes(*extent(block[20:30]))
    assert hold.takes(*extent(block[50:]))
    assert hold.takes(*extent(block[:10]))


def test_the_copier_and_the_save_meet(hold):
    tensor = torch.arange(PIECE * 9, dtype=torch.int32).remainder(255).add(1).to(torch.uint8)
    before = bytes(tensor.numpy())
    held = HostTensor(hold, "t", tensor, Way.BEHIND, Zeros(None), piece_bytes=PIECE, again=False)
    hold.add(held)
    pieces = held.pieces(PIECE)
    found = [bytes(next(pieces)) for _ in range(4)]
    held.copy_behind()
    assert not held._copy[: 4 * PIECE].any()
    assert held._copy[4 * PIECE :].all()
    tensor.zero_()
    assert b"".join([*found, *map(bytes, pieces)]) == before


def test_nobody_looks_out_for_changes_once_all_is_safe(hold):
    held = host(hold, torch.ones(200))
    hold.begin([])
    assert changes.anybody_reads()
    read(held)
    assert not changes.anybody_reads()


def test_a_reader_gets_no_memory_that_changes_later(hold):
    tensor = torch.ones(100, dtype=torch.uint8)
    held = host(hold, tensor)
    pieces = list(held.pieces(PIECE))
    tensor.zero_()
    assert all(piece.all() for piece in pieces)


def test_memory_that_is_never_copied_is_waited_for(hold):
    tensor = torch.ones(3 * PIECE, dtype=torch.uint8)
    held = host(hold, tensor, Way.WAIT)
    hold.begin([held])
    pieces = held.pieces(PIECE)
    first = threading.Thread(target=changes.before_change, args=([tensor[:PIECE]],))
    whole = threading.Thread(target=changes.before_change, args=([tensor],))
    for thread in (first, whole):
        thread.start()
    next(pieces)
    first.join(60)
    assert not first.is_alive()
    whole.join(0.05)
    assert whole.is_alive()
    list(pieces)
    whole.join(60)
    assert not whole.is_alive()
    assert held._copy is None


@pytest.mark.parametrize("how", ["end", "fail", "abandoned"])
def test_nobody_waits_for_a_save_that_is_over(hold, how):
    tensor = torch.ones(3 * PIECE, dtype=torch.uint8)
    hold.begin([host(hold, tensor, Way.WAIT)])
    waiting = threading.Thread(target=changes.before_change, args=([tensor],))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    if how == "abandoned":
        hold.abandoned = True
    elif how == "fail":
        hold.fail(OSError("lost"))
    else:
        hold.end()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_change_between_two_pieces_is_told(hold):
    tensor = torch.ones(2 * PIECE, dtype=torch.uint8)
    pieces = host(hold, tensor).pieces(PIECE)
    next(pieces)
    tensor[0] = 3
    with pytest.raises(StateChangedError, match="'t' was changed in place"):
        next(pieces)


def test_a_change_between_two_pieces_is_told_although_the_last_one_is_a_copy(hold):
    tensor = torch.ones(2 * PIECE, dtype=torch.uint8)
    held = host(hold, tensor, again=True)
    pieces = held.pieces(PIECE)
    next(pieces)
    tensor[0] = 3
    for job in held.jobs(held.first + PIECE, held.stop):
        job()
    with pytest.raises(StateChangedError, match="'t' was changed in place"):
        next(pieces)


def test_the_save_has_failed_before_the_last_copy_of_what_was_changed_is_seen(hold, monkeypatch):
    tensor = torch.ones(PIECE, dtype=torch.uint8)
    held = host(hold, tensor, Way.BEHIND)
    tensor[0] = 3
    seen, leave = [], hold.changed.notify_all

    def notify_all():
        seen.append((held._left, hold.over))
        leave()

    monkeypatch.setattr(hold.changed, "notify_all", notify_all)
    held.copy_behind()
    assert (0, True) in seen
    assert (0, False) not in seen


def test_a_save_whose_thread_cannot_be_started_holds_no_step(hold, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    held = host(hold, torch.ones(200))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        hold.begin([held])
    assert not changes.anybody_reads()


def test_state_in_a_file_is_read_from_the_file_and_not_from_what_is_mapped(
    hold, tmp_path, monkeypatch
):
    size = 1 << 20
    arena = FileArena(tmp_path / "state", 4 * size)
    content = torch.arange(4 * size, dtype=torch.int32).to(torch.uint8)
    arena.write(0, content)
    places, read_file = [], FileArena.read

    def counted(self, first, memory):
        places.append(first)
        read_file(self, first, memory)

    monkeypatch.setattr(FileArena, "read", counted)
    tensor = arena.bytes[256 : 256 + 3 * size]
    held = host(hold, tensor, Way.WAIT, piece_bytes=size)
    assert b"".join(map(bytes, held.pieces(size))) == bytes(content[256 : 256 + 3 * size].numpy())
    assert places == [256, 256 + size, 256 + 2 * size]


def test_a_change_that_is_announced_while_all_is_copied_is_not_taken_for_another():
    for _ in range(150):
        hold = Hold()
        tensors = [torch.full((3 * PIECE,), index, dtype=torch.uint8) for index in range(12)]
        held = [host(hold, tensor, Way.BEHIND) for tensor in tensors]
        hold.begin(held)
        for tensor in tensors:
            changes.before_change([tensor])
            tensor.add_(100)
        assert [read(some) for some in held] == [bytes([index]) * 192 for index in range(12)]
        hold.end()


def test_what_may_be_read_again_is_copied_although_it_was_read(hold):
    tensor = torch.arange(200, dtype=torch.uint8)
    before = bytes(tensor.numpy())
    held = host(hold, tensor, again=True)
    hold.begin([])
    assert read(held) == before
    changes.before_change([tensor])
    tensor.zero_()
    assert read(held) == before


def test_all_jobs_are_done_once_and_on_threads():
    done, threads = [], set()
    together = threading.Barrier(2)

    def work(index):
        if index < 2:
            together.wait(60)
        threads.add(threading.current_thread())
        done.append(index)

    on_several_threads([lambda index=index: work(index) for index in range(50)])
    assert sorted(done) == list(range(50))
    assert len(threads) > 1


def test_jobs_are_done_where_no_thread_can_be_started(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    on_several_threads([lambda index=index: done.append(index) for index in range(5)])
    assert done == list(range(5))


class FakeStream:
    device = torch.device("cuda", 0)

    def __init__(self, log):
        self.log = log

    def record_event(self):
        self.log.append("recorded")
        return self

    def wait_event(self, event):
        self.log.append("current waits")

    def synchronize(self):
        self.log.append("synchronized")


@pytest.fixture
def log(monkeypatch):
    found = []
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: FakeStream(found))
    return found


def test_a_step_on_a_device_waits_for_the_copy_to_begin_and_its_stream_for_the_end(hold, log):
    tensor = torch.arange(5)
    held = DeviceTensor(hold, "t", tensor, FakeStream(log), Copies(None))
    hold.add(held)
    hold.begin([])
    stepping = threading.Thread(target=changes.before_change, args=([tensor],))
    stepping.start()
    stepping.join(0.05)
    assert stepping.is_alive()
    assert not log
    held.copy_behind()
    stepping.join(60)
    assert not stepping.is_alive()
    assert log == ["recorded", "current waits"]
    tensor.zero_()
    assert bytes(next(held.pieces(PIECE))) == bytes(torch.arange(5).numpy())
    assert log[2:] == ["synchronized"]
    assert not changes.anybody_reads()


def test_pinned_memory_that_cannot_be_had_fails_the_save_and_not_the_step(hold, log):
    class None_(Copies):
        def new(self, kind):
            raise RuntimeError("out of host memory")

    tensor = torch.arange(5)
    held = DeviceTensor(hold, "t", tensor, FakeStream(log), None_(None))
    hold.add(held)
    hold.begin([held])
    changes.before_change([tensor])
    with pytest.raises(RuntimeError, match="out of host memory"):
        next(held.pieces(PIECE))


def test_the_end_waits_for_copies_from_a_device(hold, log):
    held = DeviceTensor(hold, "t", torch.arange(5), FakeStream(log), Copies(None))
    hold.add(held)
    held.copy_behind()
    hold.end()
    assert log == ["recorded", "synchronized"]


@pytest.mark.parametrize("given", [{"exp_avg.codes": torch.ones(3)}, torch.ones(3), None])
def test_what_is_no_list_of_tensors_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"takes tensors; it was given a"):
        changes.before_change(given)


def test_a_wrong_element_fails_its_caller_and_not_the_save(hold):
    tensor = torch.arange(100, dtype=torch.uint8)
    held = host(hold, tensor)
    hold.begin([])
    with pytest.raises(ConfigurationError, match="was given a str"):
        changes.before_change(["exp_avg.codes"])
    assert read(held) == bytes(tensor.numpy())
