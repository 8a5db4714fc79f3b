"""Copies for saves behind training: whose memory they use, and that CUDA's are waited for."""

import contextlib
import gc
import threading
import weakref

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint import staging
from luma_core.checkpoint.plan import plan_save
from luma_core.errors import StorageError


class Watched(staging.Staging):
    """Remembers the memory of each save's copies."""

    seen: list[list[weakref.ref]]

    def staged(self, plan):
        found = super().staged(plan)
        self.seen.append([weakref.ref(copy) for _, copy in self._used])
        return found


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(Watched, "seen", [], raising=False)
    monkeypatch.setattr(checkpoint.writer, "Staging", Watched)
    yield Watched.seen
    checkpoint.background.before_save(wait=True)


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
    checkpoint.background.finish()
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
    checkpoint.background.finish()
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
        copy = staging._new((tensor.dtype, tuple(tensor.shape), False))
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
    monkeypatch.setattr(staging, "_new", lambda kind: torch.empty(kind[1], dtype=kind[0]))
    run = new_run()
    plan = plan_save(run.optimizer, None, [torch.ones(2).as_subclass(OnCuda)] * 2, 1 << 20)
    found = staging.Staging(run.optimizer).staged(plan)
    assert log == ["own waits for current", "copy on own", "copy on own", "own synchronized"]
    assert all(torch.equal(t.checked(), torch.ones(2)) for t in found.shards["extra"][0])


@pytest.mark.gpu
def test_state_of_a_gpu_is_saved_as_it_was_and_comes_back_there(tmp_path):
    from luma_core.optim import LUMA

    def trained(steps):
        param = torch.nn.Parameter(torch.ones(1024, 1024, device="cuda"))
        optimizer = LUMA([("p", param)], seed=0)
        for step in range(steps):
            param.grad = torch.full_like(param, step + 1.0)
            optimizer.step()
        return param, optimizer

    param, optimizer = trained(3)
    expected = {k: v.clone() for k, v in optimizer.parameter_state("p").fields.items()}
    handle = checkpoint.save(tmp_path, optimizer=optimizer, wait=False)
    optimizer.step()
    handle.result()
    other = trained(0)[1]
    checkpoint.load(tmp_path, optimizer=other)
    for key, tensor in other.parameter_state("p").fields.items():
        assert tensor.device == param.device
        assert torch.equal(tensor, expected[key])
