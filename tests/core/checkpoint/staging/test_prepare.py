"""`prepare`: the first asynchronous save finds the memory for its copies."""

import gc
import threading
import weakref

import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint.staging import pool
from luma_core.checkpoint.staging.memory import new_tensor, touch
from luma_core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """Weak references to all memory for copies, in the order in which it was made."""
    found = []
    new = pool._new

    def watched(kind):
        copy = new(kind)
        found.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(pool, "_new", watched)
    yield found
    provided()
    checkpoint.staging.async_executor.before_save(wait=True)


def provided():
    """Wait until no memory is being provided."""
    for thread in threading.enumerate():
        if thread.name == "luma-provide":
            thread.join()


def save(folder, run, extra=None):
    parts = {"optimizer": run.optimizer, "model": run.model}
    return checkpoint.save(folder, **parts, extra=extra, wait=False)


def test_the_first_save_makes_no_memory_of_its_own(tmp_path, new_run, same, made):
    run, other = new_run(), new_run(steps=0)
    extra = {"noise": torch.arange(9)}
    checkpoint.prepare(optimizer=run.optimizer, model=run.model, extra=extra)
    provided()
    before = len(made)
    assert before
    save(tmp_path, run, extra=extra).result()
    assert len(made) == before
    checkpoint.load(tmp_path, optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), run.snapshot())


def test_an_optimizer_without_state_is_prepared_for_after_its_first_step(tmp_path, new_run, made):
    run = new_run(steps=0)
    checkpoint.prepare(optimizer=run.optimizer, model=run.model)
    provided()
    assert not made
    run.step(1)
    provided()
    before = len(made)
    assert before
    run.step(2)
    save(tmp_path, run).result()
    assert len(made) == before


def test_a_save_that_comes_too_early_gets_the_rest_itself(tmp_path, new_run, same, monkeypatch):
    run, other = new_run(), new_run(steps=0)
    touched, go_on = threading.Event(), threading.Event()

    def slowly(copy):
        touched.set()
        go_on.wait(60)
        touch(copy)

    monkeypatch.setattr(pool, "touch", slowly)
    checkpoint.prepare(optimizer=run.optimizer, model=run.model)
    assert touched.wait(60)
    expected = run.snapshot()
    handle = save(tmp_path, run)
    run.step(3)
    go_on.set()
    provided()
    handle.result()
    checkpoint.load(tmp_path, optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), expected)


def test_what_is_kept_is_not_provided_again(tmp_path, new_run, made):
    run = new_run()
    save(tmp_path, run).result()
    before = len(made)
    checkpoint.prepare(optimizer=run.optimizer, model=run.model)
    provided()
    assert len(made) == before


def test_memory_goes_with_its_optimizer(new_run, made):
    run = new_run()
    checkpoint.prepare(optimizer=run.optimizer)
    provided()
    assert all(copy() is not None for copy in made)
    del run
    gc.collect()
    assert not any(copy() is not None for copy in made)


def test_what_save_refuses_is_refused_at_once(new_run):
    parameter = torch.nn.Parameter(torch.zeros(3))
    adamw = torch.optim.AdamW([parameter])
    adamw.state[parameter]["odd"] = object()
    with pytest.raises(ConfigurationError, match="odd"):
        checkpoint.prepare(optimizer=adamw)
    with pytest.raises(ConfigurationError, match="extra"):
        checkpoint.prepare(optimizer=new_run().optimizer, extra={"key": object()})


@pytest.mark.parametrize("elements", [0, 7, (4 << 20) // 4 + 1])
def test_new_memory_is_writable_aligned_and_of_its_own(elements):
    some = [new_tensor((elements, 1), torch.float32) for _ in range(2)]
    for value, tensor in enumerate(some):
        assert tensor.shape == (elements, 1)
        assert tensor.data_ptr() % 64 == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        tensor.fill_(value)
    assert torch.equal(some[0], torch.zeros(elements, 1))
    touch(some[1])
