"""What is under copy-on-write for an asynchronous save: which bytes, and who waits for whom."""

import contextlib
import threading

import pytest
import torch

from luma_core import changes
from luma_core.checkpoint.staging.copy_on_write import CopyOnWriteGuard, extent, on_several_threads
from luma_core.checkpoint.staging.pool import StagingPool
from luma_core.checkpoint.staging.tensors import DeviceTensor, HostTensor, Way
from luma_core.errors import ConfigurationError, StateChangedError
from luma_core.optim.offload.files import FileArena

PIECE = 64


def host(guard, tensor, way=Way.BACKGROUND, **options):
    options = {"piece_bytes": PIECE, "again": False, **options}
    guarded = HostTensor(guard, "t", tensor, way, StagingPool(None), **options)
    guard.add(guarded)
    return guarded


class Zeros(StagingPool):
    """Memory that shows what was written to it."""

    def new(self, kind):
        return super().new(kind).zero_()


def read(guarded):
    return b"".join(bytes(piece) for piece in guarded.pieces(PIECE))


@pytest.fixture
def guard():
    made = CopyOnWriteGuard()
    yield made
    made.end()
    assert not changes.anybody_reads()


def test_only_the_pieces_that_a_change_touches_are_copied(guard):
    tensor = torch.arange(1000, dtype=torch.uint8)
    before = bytes(tensor.numpy())
    guarded = host(guard, tensor)
    guard.begin([])
    changes.before_change([tensor[70:140]])
    tensor[70:140] = 0
    assert [bool(state) for state in guarded._states[:4]] == [False, True, True, False]
    assert read(guarded) == before


def test_tensors_of_one_block_are_found_by_any_view_of_it(guard):
    block = torch.arange(256, dtype=torch.uint8)
    some = [host(guard, block[start : start + 50]) for start in (0, 60, 200)]
    guard.begin([])
    changes.before_change([block[40:61]])
    assert [bool(guarded._copy is not None) for guarded in some] == [True, True, False]
    changes.before_change([block[110:200], block[250:]])
    assert some[2]._copy is None


def test_a_strided_view_covers_all_that_is_between(guard):
    tensor = torch.zeros(20, 10, dtype=torch.int32)
    assert extent(tensor[:, 3]) == (tensor.data_ptr() + 12, tensor.data_ptr() + 764 + 12)
    first, stop = extent(tensor[:0])
    assert first == stop


def test_memory_that_is_held_already_is_not_held_again(guard):
    block = torch.zeros(100, dtype=torch.uint8)
    host(guard, block[10:50])
    assert not guard.takes(*extent(block[49:60]))
    assert not guard.takes(*extent(block[:11]))
    assert not guard.takes(*extent(block))
    assert not guard.takes(*extent(block[20:30]))
    assert guard.takes(*extent(block[50:]))
    assert guard.takes(*extent(block[:10]))


def test_the_copier_and_the_save_meet(guard):
    tensor = torch.arange(PIECE * 9, dtype=torch.int32).remainder(255).add(1).to(torch.uint8)
    before = bytes(tensor.numpy())
    guarded = HostTensor(
        guard, "t", tensor, Way.BACKGROUND, Zeros(None), piece_bytes=PIECE, again=False
    )
    guard.add(guarded)
    pieces = guarded.pieces(PIECE)
    found = [bytes(next(pieces)) for _ in range(4)]
    guarded.copy_in_background()
    assert not guarded._copy[: 4 * PIECE].any()
    assert guarded._copy[4 * PIECE :].all()
    tensor.zero_()
    assert b"".join([*found, *map(bytes, pieces)]) == before


def test_nobody_looks_out_for_changes_once_all_is_safe(guard):
    guarded = host(guard, torch.ones(200))
    guard.begin([])
    assert changes.anybody_reads()
    read(guarded)
    assert not changes.anybody_reads()


def test_a_reader_gets_no_memory_that_changes_later(guard):
    tensor = torch.ones(100, dtype=torch.uint8)
    guarded = host(guard, tensor)
    pieces = list(guarded.pieces(PIECE))
    tensor.zero_()
    assert all(piece.all() for piece in pieces)


def test_memory_that_is_never_copied_is_waited_for(guard):
    tensor = torch.ones(3 * PIECE, dtype=torch.uint8)
    guarded = host(guard, tensor, Way.WAIT)
    guard.begin([guarded])
    pieces = guarded.pieces(PIECE)
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
    assert guarded._copy is None


@pytest.mark.parametrize("how", ["end", "fail", "abandoned"])
def test_nobody_waits_for_a_save_that_is_over(guard, how):
    tensor = torch.ones(3 * PIECE, dtype=torch.uint8)
    guard.begin([host(guard, tensor, Way.WAIT)])
    waiting = threading.Thread(target=changes.before_change, args=([tensor],))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    if how == "abandoned":
        guard.abandoned = True
    elif how == "fail":
        guard.fail(OSError("lost"))
    else:
        guard.end()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_change_between_two_pieces_is_told(guard):
    tensor = torch.ones(2 * PIECE, dtype=torch.uint8)
    pieces = host(guard, tensor).pieces(PIECE)
    next(pieces)
    tensor[0] = 3
    with pytest.raises(StateChangedError, match="'t' was changed in place"):
        next(pieces)


def test_a_change_between_two_pieces_is_told_although_the_last_one_is_a_copy(guard):
    tensor = torch.ones(2 * PIECE, dtype=torch.uint8)
    guarded = host(guard, tensor, again=True)
    pieces = guarded.pieces(PIECE)
    next(pieces)
    tensor[0] = 3
    for job in guarded.jobs(guarded.first + PIECE, guarded.stop):
        job()
    with pytest.raises(StateChangedError, match="'t' was changed in place"):
        next(pieces)


def test_the_save_has_failed_before_the_last_copy_of_what_was_changed_is_seen(guard, monkeypatch):
    tensor = torch.ones(PIECE, dtype=torch.uint8)
    guarded = host(guard, tensor, Way.BACKGROUND)
    tensor[0] = 3
    seen, leave = [], guard.changed.notify_all

    def notify_all():
        seen.append((guarded._left, guard.over))
        leave()

    monkeypatch.setattr(guard.changed, "notify_all", notify_all)
    guarded.copy_in_background()
    assert (0, True) in seen
    assert (0, False) not in seen


def test_a_save_whose_thread_cannot_be_started_holds_no_step(guard, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    guarded = host(guard, torch.ones(200))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        guard.begin([guarded])
    assert not changes.anybody_reads()


def test_state_in_a_file_is_read_from_the_file_and_not_from_what_is_mapped(
    guard, tmp_path, monkeypatch
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
    guarded = host(guard, tensor, Way.WAIT, piece_bytes=size)
    assert b"".join(map(bytes, guarded.pieces(size))) == bytes(
        content[256 : 256 + 3 * size].numpy()
    )
    assert places == [256, 256 + size, 256 + 2 * size]


def test_a_change_that_is_announced_while_all_is_copied_is_not_taken_for_another():
    for _ in range(150):
        guard = CopyOnWriteGuard()
        tensors = [torch.full((3 * PIECE,), index, dtype=torch.uint8) for index in range(12)]
        guarded = [host(guard, tensor, Way.BACKGROUND) for tensor in tensors]
        guard.begin(guarded)
        for tensor in tensors:
            changes.before_change([tensor])
            tensor.add_(100)
        assert [read(some) for some in guarded] == [bytes([index]) * 192 for index in range(12)]
        guard.end()


def test_what_may_be_read_again_is_copied_although_it_was_read(guard):
    tensor = torch.arange(200, dtype=torch.uint8)
    before = bytes(tensor.numpy())
    guarded = host(guard, tensor, again=True)
    guard.begin([])
    assert read(guarded) == before
    changes.before_change([tensor])
    tensor.zero_()
    assert read(guarded) == before


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


def test_a_step_on_a_device_waits_for_the_copy_to_begin_and_its_stream_for_the_end(guard, log):
    tensor = torch.arange(5)
    guarded = DeviceTensor(guard, "t", tensor, FakeStream(log), StagingPool(None))
    guard.add(guarded)
    guard.begin([])
    stepping = threading.Thread(target=changes.before_change, args=([tensor],))
    stepping.start()
    stepping.join(0.05)
    assert stepping.is_alive()
    assert not log
    guarded.copy_in_background()
    stepping.join(60)
    assert not stepping.is_alive()
    assert log == ["recorded", "current waits"]
    tensor.zero_()
    assert bytes(next(guarded.pieces(PIECE))) == bytes(torch.arange(5).numpy())
    assert log[2:] == ["synchronized"]
    assert not changes.anybody_reads()


def test_pinned_memory_that_cannot_be_had_fails_the_save_and_not_the_step(guard, log):
    class None_(StagingPool):
        def new(self, kind):
            raise RuntimeError("out of host memory")

    tensor = torch.arange(5)
    guarded = DeviceTensor(guard, "t", tensor, FakeStream(log), None_(None))
    guard.add(guarded)
    guard.begin([guarded])
    changes.before_change([tensor])
    with pytest.raises(RuntimeError, match="out of host memory"):
        next(guarded.pieces(PIECE))


def test_the_end_waits_for_copies_from_a_device(guard, log):
    guarded = DeviceTensor(guard, "t", torch.arange(5), FakeStream(log), StagingPool(None))
    guard.add(guarded)
    guarded.copy_in_background()
    guard.end()
    assert log == ["recorded", "synchronized"]


@pytest.mark.parametrize("given", [{"exp_avg.codes": torch.ones(3)}, torch.ones(3), None])
def test_what_is_no_list_of_tensors_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"takes tensors; it was given a"):
        changes.before_change(given)


def test_a_wrong_element_fails_its_caller_and_not_the_save(guard):
    tensor = torch.arange(100, dtype=torch.uint8)
    guarded = host(guard, tensor)
    guard.begin([])
    with pytest.raises(ConfigurationError, match="was given a str"):
        changes.before_change(["exp_avg.codes"])
    assert read(guarded) == bytes(tensor.numpy())
