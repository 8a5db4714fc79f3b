"""Copies for asynchronous saves: whose memory they use, and that CUDA's are waited for."""

import contextlib
import gc
import os
import threading
import weakref

import pytest
import torch

from luma_core import checkpoint, optim
from luma_core.checkpoint.format.plan import plan_save
from luma_core.checkpoint.staging import pool
from luma_core.checkpoint.staging import staged as staging
from luma_core.errors import StateChangedError, StorageError


class Watched(pool.StagingPool):
    """Remembers the memory of each save's copies."""

    seen: list[list[weakref.ref]]

    def __init__(self, owner):
        super().__init__(owner)
        self.made = []
        self.seen.append(self.made)

    def new(self, kind):
        copy = super().new(kind)
        self.made.append(weakref.ref(copy))
        return copy


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(staging, "StagingPool", Watched)
    yield Watched.seen
    checkpoint.staging.async_executor.before_save(wait=True)


def save(folder, run, **options):
    return checkpoint.save(folder, optimizer=run.optimizer, wait=False, overwrite=True, **options)


def test_the_next_save_uses_the_memory_of_the_last(tmp_path, new_run, same, seen):
    run, other = new_run(), new_run(steps=0)
    save(tmp_path, run).result()
    run.step(3)
    expected = run.snapshot()
    handle = save(tmp_path, run)
    run.step(4)
    handle.result()
    first, second = ([id(copy()) for copy in copies] for copies in seen)
    assert sorted(first) == sorted(second)
    checkpoint.load(tmp_path, optimizer=other.optimizer)
    other.model.load_state_dict({k[2:]: v for k, v in expected.items() if k.startswith("w/")})
    assert same(other.snapshot(), expected)


def test_a_save_in_flight_keeps_its_memory_to_itself(tmp_path, new_run, seen):
    run = new_run()
    opened = threading.Event()
    states = []
    for name in "ab":
        states.append({k: v for k, v in run.snapshot().items() if k.startswith("s/")})
        save(tmp_path / name, run, progress=lambda *_: opened.wait(60))
        run.step(5)
    first, second = ({id(copy()) for copy in copies} for copies in seen)
    assert not first & second
    opened.set()
    checkpoint.staging.async_executor.finish()
    for name, expected in zip("ab", states, strict=True):
        for state in checkpoint.open(tmp_path / name).states():
            for key, stored in state.fields.items():
                assert torch.equal(stored, expected[f"s/{state.name}/{key}"])


def test_one_set_of_copies_is_kept_and_goes_with_its_optimizer(tmp_path, new_run, seen):
    run = new_run()
    opened = threading.Event()
    for name in "ab":
        save(tmp_path / name, run, progress=lambda *_: opened.wait(60))
    opened.set()
    checkpoint.staging.async_executor.finish()
    # The thread that saved lets go of the last save's plan when it waits for the next one.
    save(tmp_path / "c", new_run()).result()
    alive = [[copy() is not None for copy in copies] for copies in seen[:2]]
    assert sorted(map(all, alive)) == [False, True]
    del run
    gc.collect()
    assert not any(copy() is not None for copies in seen[:2] for copy in copies)


def test_memory_that_no_longer_fits_is_let_go(tmp_path, new_run, seen):
    run = new_run()
    save(tmp_path, run, extra=torch.zeros(4000)).result()
    save(tmp_path, run, extra=torch.zeros(5000)).result()
    gone = [copy() is None for copy in seen[0]]
    assert gone.count(True) == 1


def test_a_failed_save_gives_its_memory_to_the_next(tmp_path, new_run, seen):
    run = new_run()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(tmp_path / "file" / "c", run).result()
    save(tmp_path / "c", run).result()
    first, second = ({id(copy()) for copy in copies} for copies in seen)
    assert first == second


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(3 << 18, dtype=torch.int32).view(3, -1),
        torch.arange(6 << 18, dtype=torch.int32).view(-1, 3).t(),
        torch.arange(6 << 18, dtype=torch.int32)[::2],
        torch.conj(torch.arange(1 << 18) * (1 + 2j)),
        torch.arange(1 << 18, dtype=torch.bfloat16).requires_grad_(),
        torch.tensor(7.0),
        torch.empty(0, 5),
    ],
    ids=["plain", "transposed", "strided", "conjugate", "grad", "scalar", "empty"],
)
def test_any_tensor_is_copied(tensor):
    with torch.no_grad(), staging._Copier() as copier:
        copy = pool._new((tensor.dtype, tuple(tensor.shape), False))
        copier.copy(tensor.detach(), copy)
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr() or not tensor.numel()


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    is_cuda = True


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self):
        self.log.append(f"{self.name} synchronized")


def test_cuda_tensors_are_copied_on_one_stream_that_is_waited_for(new_run, monkeypatch):
    log = []

    @contextlib.contextmanager
    def within(stream):
        log.append(f"copy on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log, "own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(log, "current"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(pool, "_new", lambda kind: torch.empty(kind[1], dtype=kind[0]))
    run = new_run()
    plan = plan_save(run.optimizer, None, [torch.ones(2).as_subclass(OnCuda)] * 2, 1 << 20)
    found = staging.Staging(run.optimizer).staged(plan)
    assert log == ["own waits for current", "copy on own", "copy on own", "own synchronized"]
    assert all(torch.equal(t.checked(), torch.ones(2)) for t in found.shards["extra"][0])


def on_gpu(kind, **options):
    """Return parameters with gradients on a GPU, and their optimizer after some steps."""
    named = [(f"p{i}", torch.nn.Parameter(torch.ones(2048, 2048, device="cuda"))) for i in range(3)]
    optimizer = getattr(optim, kind)(named, seed=0, **options)
    for step in range(3):
        for _, param in named:
            param.grad = torch.full_like(param, step + 1.0)
        optimizer.step()
    torch.cuda.synchronize()
    return named, optimizer


def fields(optimizer):
    return {
        f"{state.name} {key}": value.cpu().clone()
        for state in optimizer.parameter_states()
        for key, value in state.fields.items()
    }


def assert_saved(folder, expected):
    for state in checkpoint.open(folder).states():
        for key, value in state.fields.items():
            assert torch.equal(value, expected[f"{state.name} {key}"])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["LUMA", "TurboAdam", "LAMB"])
@pytest.mark.parametrize("offload", [None, "host", "disk", "cpu-step"])
def test_steps_on_a_gpu_that_are_launched_at_once(tmp_path, kind, offload):
    away = {} if offload is None else {"offload": offload, "offload_buffer_bytes": 8 << 20}
    if offload == "disk":
        away["offload_directory"] = tmp_path / "state"
    _, optimizer = on_gpu(kind, **away)
    # The second save finds memory that is pinned already; the third goes on beside it.
    expected = []
    for place in "abc":
        expected.append(fields(optimizer))
        handle = checkpoint.save(tmp_path / place, optimizer=optimizer, wait=False)
        for _ in range(3):
            optimizer.step()
        if place == "a":
            handle.result()
    checkpoint.wait_for_saves()
    for place, found in zip("abc", expected, strict=True):
        assert_saved(tmp_path / place, found)
    if offload == "disk":
        away["offload_directory"] = tmp_path / "other"
    other = on_gpu(kind, **away)[1]
    checkpoint.load(tmp_path / "a", optimizer=other)
    assert all(torch.equal(v, expected[0][k]) for k, v in fields(other).items())


@pytest.mark.gpu
def test_steps_within_backward_on_a_gpu(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(6))).cuda()
    optimizer = optim.LUMA(model.named_parameters(), seed=0)
    optim.step_in_backward(model, optimizer)
    x = torch.randn(64, 1024, device="cuda")
    for place in "abcd":
        model(x).square().mean().backward()
        expected = fields(optimizer)
        checkpoint.save(tmp_path / place, optimizer=optimizer, wait=False)
        model(x).square().mean().backward()
        checkpoint.wait_for_saves()
        assert_saved(tmp_path / place, expected)


@pytest.mark.gpu
def test_steps_of_a_graph_that_is_replayed_at_once(tmp_path):
    """They pass by Python, so that state must have been copied before."""
    named, optimizer = on_gpu("LUMA", capturable=True, lr=torch.tensor(1e-3, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for place in "ab":
        expected = fields(optimizer)
        handle = checkpoint.save(tmp_path / place, optimizer=optimizer, wait=False)
        for _ in range(3):
            graph.replay()
        handle.result()
        assert_saved(tmp_path / place, expected)
    assert named


@pytest.mark.gpu
def test_a_change_of_state_on_a_gpu_that_nobody_told_of_fails_the_save(tmp_path):
    _, optimizer = on_gpu("LUMA")
    opened = threading.Event()
    handle = checkpoint.save(
        tmp_path, optimizer=optimizer, wait=False, progress=lambda *_: opened.wait(60)
    )
    for state in optimizer.parameter_states():
        for value in state.fields.values():
            value.zero_()
    opened.set()
    with pytest.raises(StateChangedError, match="was changed in place"):
        handle.result()
    assert not checkpoint.exists(tmp_path)


@pytest.mark.gpu
def test_a_child_that_is_forked_after_a_save_lives(tmp_path):
    _, optimizer = on_gpu("LUMA")
    checkpoint.save(tmp_path, optimizer=optimizer, wait=False).result()
    child = os.fork()
    if child == 0:
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
