"""Saves as differences to an earlier checkpoint: what is read back, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luma_core import checkpoint, stats
from luma_core.checkpoint.format.zigzag import add_difference, difference
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.write import save_run as writer
from luma_core.errors import (
    BrokenChainError,
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
)
from luma_core.optim import LUMA, AdamMini, TurboAdam

SHARD = "optimizer-00001-of-00001.safetensors"
KINDS = {
    "luma": lambda params: LUMA(params, seed=1, min_compress_elements=9),
    "turbo": lambda params: TurboAdam(params, seed=1, min_m_compress_elements=9),
    "mini": lambda params: AdamMini(params, seed=1),
    "plain": lambda params: LUMA(params, seed=1, min_compress_elements=10**9),
}


class Training:
    """Parameters of awkward shapes and their optimizer."""

    def __init__(self, kind, steps=30):
        torch.manual_seed(0)
        shapes = {"matrix": (96, 130), "thin": (300, 5), "bias": (9,), "scalar": (), "none": (0, 4)}
        self.params = [(name, torch.nn.Parameter(torch.randn(s))) for name, s in shapes.items()]
        self.optimizer = KINDS[kind](self.params)
        self.train(steps)

    def train(self, steps):
        for _ in range(steps):
            for _, param in self.params:
                param.grad = torch.randn_like(param)
            self.optimizer.step()

    def state(self):
        return {
            f"{state.name}/{key}": tensor.clone()
            for state in self.optimizer.parameter_states()
            for key, tensor in state.fields.items()
        }


def read(opened):
    return {
        f"{name}/{key}": tensor
        for name in opened.parameter_names()
        for key, tensor in opened.parameter_state(name).fields.items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def save_chain(root, training, length, **options):
    """Save full, then deltas two steps apart; return the state of each."""
    found = []
    for index in range(length):
        training.train(2)
        base = root / str(index - 1) if index else None
        checkpoint.save(root / str(index), optimizer=training.optimizer, base=base, **options)
        found.append(training.state())
    return found


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 4 << 10)


@given(
    size=st.sampled_from([1, 2, 4, 8]),
    pairs=st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))),
)
def test_any_difference_is_undone(size, pairs):
    raw, base = (
        (np.frombuffer(b"".join(side), np.uint8) for side in zip(*pairs, strict=True))
        if (pairs)
        else (np.empty(0, np.uint8),) * 2
    )
    out = base.copy()
    add_difference(difference(raw, base, size), out, size)
    assert np.array_equal(out, raw)


def test_small_differences_of_either_sign_are_small():
    raw, base = np.array([5, 4, 0, 65535], "<u2"), np.array([4, 5, 65535, 0], "<u2")
    coded = difference(raw.view(np.uint8), base.view(np.uint8), 2)
    assert coded.view("<u2").tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_chunks")
def test_every_checkpoint_of_a_chain_is_read_as_a_full_one(tmp_path, kind):
    training = Training(kind)
    states = save_chain(tmp_path, training, 4, max_shard_bytes=20_000)
    full = checkpoint.save(tmp_path / "full", optimizer=training.optimizer)
    last = checkpoint.open(tmp_path / "3")
    assert (last.manifest.version, last.manifest.chain, last.manifest.base.folder) == (2, 4, "2")
    assert last.manifest.summary.stored_bytes < full.summary.stored_bytes
    assert any(entry.deltas for entry in last.manifest.tensors)
    for index, state in enumerate(states):
        opened = checkpoint.open(tmp_path / str(index))
        assert equal(read(opened), state)
        other = Training(kind, steps=1)
        checkpoint.load(tmp_path / str(index), optimizer=other.optimizer)
        assert equal(other.state(), state)
        assert checkpoint.verify(tmp_path / str(index)).ok
    same = stats.diff(last, checkpoint.open(tmp_path / "full"))
    assert same.identical


@pytest.mark.usefixtures("small_chunks")
def test_rows_are_read_by_the_chunks_that_hold_them(tmp_path, monkeypatch):
    training = Training("luma")
    save_chain(tmp_path, training, 3)
    opened = checkpoint.open(tmp_path / "2")
    whole = opened.parameter_state("matrix").decode("exp_avg_sq")
    for rows in (slice(0, 1), slice(15, 18), slice(90, None), slice(5, 5)):
        assert torch.equal(opened.read("matrix", "exp_avg_sq", rows=rows), whole[rows])
    asked = []
    read_range = LocalStore.read_range

    def watched(self, name, start, stop):
        asked.append((self.path.name, stop - start))
        return read_range(self, name, start, stop)

    monkeypatch.setattr(LocalStore, "read_range", watched)
    opened.read("matrix", "exp_avg_sq", field="codes", rows=slice(0, 1))
    assert sorted(folder for folder, _ in asked) == ["0", "1", "2"]
    assert all(count <= 4 << 10 for _, count in asked)


def test_a_base_with_chunks_of_another_size_will_do(tmp_path, monkeypatch):
    training = Training("luma")
    checkpoint.save(tmp_path / "a", optimizer=training.optimizer)
    for name, base, size in (("b", "a", 3 << 10), ("c", "b", 5 << 10)):
        monkeypatch.setattr(writer, "CHUNK_BYTES", size)
        training.train(1)
        checkpoint.save(tmp_path / name, optimizer=training.optimizer, base=tmp_path / base)
    assert checkpoint.open(tmp_path / "c").manifest.chain == 3
    assert equal(read(checkpoint.open(tmp_path / "c")), training.state())


def test_differences_are_kept_only_where_they_are_smaller(tmp_path):
    one, other = Training("luma"), Training("luma", steps=90)
    checkpoint.save(tmp_path / "a", optimizer=one.optimizer)
    for _, param in other.params:
        param.grad = torch.exp(9 * torch.randn_like(param))
    other.optimizer.step()
    far = checkpoint.save(tmp_path / "b", optimizer=other.optimizer, base=tmp_path / "a")
    full = checkpoint.save(tmp_path / "c", optimizer=other.optimizer)
    stored = {entry.name: entry.stored_bytes for entry in full.tensors}
    assert all(entry.stored_bytes <= stored[entry.name] for entry in far.tensors)
    one.train(1)
    near = checkpoint.save(tmp_path / "d", optimizer=one.optimizer, base=tmp_path / "a")
    codes = {entry.name: entry for entry in near.tensors}
    assert codes["matrix/exp_avg_sq.codes"].deltas
    assert codes["matrix/exp_avg_sq.codes"].stored_bytes < stored["matrix/exp_avg_sq.codes"] / 1.5


def test_a_save_without_any_difference_is_full(tmp_path):
    training = Training("luma")
    checkpoint.save(tmp_path / "a", optimizer=Training("plain").optimizer)
    saved = checkpoint.save(tmp_path / "b", optimizer=LUMA(training.params), base=tmp_path / "a")
    assert (saved.version, saved.base, saved.chain) == (1, None, 1)
    shutil.rmtree(tmp_path / "a")
    assert checkpoint.verify(tmp_path / "b").ok


def test_tensors_without_a_counterpart_are_stored_whole(tmp_path):
    training = Training("luma")
    checkpoint.save(tmp_path / "a", optimizer=training.optimizer)
    params = [(name, param) for name, param in training.params if name != "matrix"]
    params += [("matrix", torch.nn.Parameter(torch.randn(40, 50)))]
    changed = LUMA(params, seed=1, min_compress_elements=9)
    changed.load_state_dict(changed.state_dict())
    changed.init_state()
    saved = checkpoint.save(tmp_path / "b", optimizer=changed, base=tmp_path / "a")
    assert not any(e.deltas for e in saved.tensors if e.name.startswith("matrix/"))
    opened = checkpoint.open(tmp_path / "b")
    for state in changed.parameter_states():
        assert equal(dict(opened.parameter_state(state.name).fields), dict(state.fields))


def test_model_and_extra_need_no_base(tmp_path, new_run, same):
    run = new_run()
    checkpoint.save(tmp_path / "a", optimizer=run.optimizer, model=run.model)
    run.step(5)
    value = {"rng": torch.arange(9), "epoch": 3}
    checkpoint.save(
        tmp_path / "b", optimizer=run.optimizer, model=run.model, extra=value, base=tmp_path / "a"
    )
    other = new_run(steps=0)
    loaded = checkpoint.load(tmp_path / "b", optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), run.snapshot())
    assert loaded.extra["rng"].tolist() == list(range(9))
    (tmp_path / "a" / "model-00001-of-00001.safetensors").unlink()
    assert checkpoint.verify(tmp_path / "b").ok
    shutil.rmtree(tmp_path / "a")
    third = new_run(steps=0)
    checkpoint.load(tmp_path / "b", model=third.model)
    assert checkpoint.open(tmp_path / "b").extra()["epoch"] == 3


def test_both_may_move_together(tmp_path):
    training = Training("luma")
    states = save_chain(tmp_path / "run", training, 3)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert equal(read(checkpoint.open(tmp_path / "moved" / "2")), states[-1])
    (tmp_path / "link").symlink_to(tmp_path / "moved" / "2")
    assert equal(read(checkpoint.open(tmp_path / "link")), states[-1])


def test_a_relative_path_names_the_same_place(tmp_path, monkeypatch):
    training = Training("luma")
    save_chain(tmp_path, training, 1)
    monkeypatch.chdir(tmp_path)
    training.train(1)
    checkpoint.save("b", optimizer=training.optimizer, base=tmp_path / "0")
    monkeypatch.chdir(tmp_path / "b")
    assert equal(read(checkpoint.open(".")), training.state())


def test_a_base_may_still_be_on_its_way(tmp_path):
    training = Training("luma")
    handles = []
    for index in range(3):
        training.train(1)
        base = tmp_path / str(index - 1) if index else None
        save = checkpoint.save(
            tmp_path / str(index), optimizer=training.optimizer, base=base, wait=False
        )
        handles.append(save)
    assert [handle.result().chain for handle in handles] == [1, 2, 3]
    assert equal(read(checkpoint.open(tmp_path / "2")), training.state())


def test_what_cannot_be_a_base(tmp_path, monkeypatch):
    training = Training("luma")
    save_chain(tmp_path / "run", training, 2)
    checkpoint.save(tmp_path / "elsewhere", optimizer=training.optimizer)

    def save(base, name="new", **options):
        place = tmp_path / "run" / name
        checkpoint.save(place, optimizer=training.optimizer, base=base, **options)

    with pytest.raises(ConfigurationError, match="must lie in the same folder"):
        save(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="must lie in the same folder"):
        save("memory://run/0")
    with pytest.raises(ConfigurationError, match="would replace"):
        save(tmp_path / "run" / "1", name="1", overwrite=True)
    with pytest.raises(ConfigurationError, match="must be 'zstd' where there is a base"):
        save(tmp_path / "run" / "0", compression="none")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint here"):
        save(tmp_path / "run" / "9")
    monkeypatch.setattr(checkpoint.write.delta_base, "MAX_CHAIN", 2)
    with pytest.raises(ConfigurationError, match="a chain of 2 checkpoints"):
        save(tmp_path / "run" / "1")
    (tmp_path / "run" / "0" / SHARD).write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match=f"run/0/{SHARD}"):
        save(tmp_path / "run" / "0")
    shutil.rmtree(tmp_path / "run" / "0")
    with pytest.raises(BrokenChainError, match="'0' beside it, which is missing"):
        save(tmp_path / "run" / "1")
    assert not (tmp_path / "run" / "new").exists() or not any((tmp_path / "run" / "new").iterdir())


def test_a_base_that_goes_while_it_is_in_use_leaves_no_checkpoint(tmp_path):
    training = Training("luma")
    save_chain(tmp_path, training, 1)

    def remove(done, total):
        if done == total:
            (tmp_path / "0" / "luma.json").unlink(missing_ok=True)

    with pytest.raises(BrokenChainError, match="removed or replaced while it was in use"):
        checkpoint.save(
            tmp_path / "1", optimizer=training.optimizer, base=tmp_path / "0", progress=remove
        )
    assert not checkpoint.exists(tmp_path / "1")


@pytest.mark.parametrize("place", [3, b"run", None])
def test_places_that_cannot_be(place):
    training = Training("luma")
    with pytest.raises(ConfigurationError, match="must be a path, a URL or a store"):
        checkpoint.save(place, optimizer=training.optimizer)
