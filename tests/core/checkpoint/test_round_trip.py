"""What was saved comes back bit for bit, whatever its kind and however it is stored."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luma_core import checkpoint
from luma_core.checkpoint.write import save_run as writer
from luma_core.errors import ConfigurationError
from luma_core.optim import LUMA


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("max_shard_bytes", [1, 4000, 1 << 30])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("block_size", [16, None])
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(
    tmp_path, new_run, same, compression, max_shard_bytes, named, block_size
):
    run = new_run(named=named, block_size=block_size)
    saved = run.snapshot()
    manifest = checkpoint.save(
        tmp_path / "c",
        optimizer=run.optimizer,
        model=run.model,
        compression=compression,
        max_shard_bytes=max_shard_bytes,
    )
    other = new_run(steps=1, seed=5, named=named, block_size=block_size)
    loaded = checkpoint.load(tmp_path / "c", optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), saved)
    assert loaded.manifest == manifest
    assert loaded.extra is None
    for index in range(3, 6):
        run.step(index)
        other.step(index)
    assert same(other.snapshot(), run.snapshot())


def test_tensors_of_many_chunks_come_back(tmp_path, new_run, same, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 192)
    run = new_run()
    manifest = checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    assert max(len(tensor.chunks) for tensor in manifest.tensors) > 10
    other = new_run(steps=0, seed=5)
    checkpoint.load(tmp_path, optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), run.snapshot())


def test_parameters_are_matched_by_name_not_by_order(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer)
    other = LUMA(reversed(list(run.model.named_parameters())), min_compress_elements=8)
    checkpoint.load(tmp_path, optimizer=other)
    for name in run.optimizer.parameter_names():
        want, got = run.optimizer.parameter_state(name), other.parameter_state(name)
        assert got.step == want.step == 3
        assert got.noise_key == want.noise_key
        for key, tensor in want.fields.items():
            assert torch.equal(got.fields[key], tensor)


@pytest.mark.parametrize("saved_named", [True, False])
def test_where_one_side_has_no_names_parameters_are_matched_by_position(
    tmp_path, new_run, same, saved_named
):
    run = new_run(named=saved_named)
    checkpoint.save(tmp_path, optimizer=run.optimizer)
    other = new_run(steps=0, named=not saved_named)
    checkpoint.load(tmp_path, optimizer=other.optimizer)
    for want, got in zip(
        run.optimizer.parameter_states(), other.optimizer.parameter_states(), strict=True
    ):
        assert same(dict(got.fields), dict(want.fields))
        assert got.noise_key == want.noise_key


def test_parameters_without_state_and_group_options_come_back(tmp_path):
    used, unused = nn.Parameter(torch.ones(3, 40)), nn.Parameter(torch.ones(0, 7))
    groups = [
        {"params": [("a", used)], "lr": 0.5},
        {"params": [("b", unused)], "betas": (0.5, 0.6)},
    ]
    optimizer = LUMA(groups, seed=3)
    used.grad = torch.ones_like(used)
    optimizer.step()
    manifest = checkpoint.save(tmp_path, optimizer=optimizer)
    assert [entry.step for entry in manifest.parameters] == [1, 0]
    fresh = [{"params": [("a", nn.Parameter(used.detach()))]}, {"params": [("b", unused)]}]
    other = LUMA(fresh)
    checkpoint.load(tmp_path, optimizer=other)
    assert other.group_options() == optimizer.group_options()
    assert not other.state[unused]


def test_bfloat16_weights_and_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 40, dtype=torch.bfloat16)
            self.head = nn.Linear(40, 10, bias=False, dtype=torch.bfloat16)
            self.head.weight = self.embed.weight
            self.register_buffer("mask", torch.tensor([True, False]))

    model = Tied()
    manifest = checkpoint.save(
        tmp_path, optimizer=LUMA(model.named_parameters()), model=model, compression="none"
    )
    assert manifest.aliases == {"head.weight": "embed.weight"}
    stored = load_file(tmp_path / "model-00001-of-00001.safetensors")
    assert stored.keys() == {"embed.weight", "mask"}
    other = Tied()
    checkpoint.load(tmp_path, model=other)
    assert torch.equal(other.head.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight
    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(10, 40, dtype=torch.bfloat16))
    checkpoint.load(tmp_path, model=untied)
    assert torch.equal(untied.head.weight, model.embed.weight)


EXTRA = {
    "epoch": 3,
    "best": 0.25,
    "none": None,
    "big": 2**70,
    "$tensor": "a key of the caller's own",
    "$": {"$$tensor": [True, "é\n"]},
    "a/b": {"~": [[1, [2.5]], {}]},
    "": [],
}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_extra_values_and_tensors_come_back(tmp_path, new_run, compression):
    tensors = [
        torch.get_rng_state(),
        torch.arange(7).to(torch.int32),
        torch.tensor(True),
        torch.randn(3, 0, 2),
        torch.randn(4, 6).t(),
        torch.randn(5).to(torch.float16),
        torch.tensor(1.5, dtype=torch.float64),
    ]
    extra = {**EXTRA, "tensors": {"a/b": tensors[:1], "a": {"b": tensors[1:]}}}
    run = new_run(steps=0)
    checkpoint.save(tmp_path, optimizer=run.optimizer, extra=extra, compression=compression)
    for loaded in (checkpoint.load(tmp_path).extra, checkpoint.open(tmp_path).extra()):
        got = loaded.pop("tensors")
        assert loaded == EXTRA
        for want, found in zip(tensors, [*got["a/b"], *got["a"]["b"]], strict=True):
            assert found.dtype == want.dtype
            assert torch.equal(found, want)


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ({"a": [1, {"b": object()}]}, "extra['a'][1]['b'] is of type object"),
        ({"x": torch.eye(2).to_sparse()}, "extra['x']"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "extra['x']"),
    ],
)
def test_extra_values_that_cannot_be_saved_are_refused_by_place(tmp_path, new_run, extra, place):
    with pytest.raises(ConfigurationError, match=re.escape(place)):
        checkpoint.save(tmp_path, optimizer=new_run(steps=0).optimizer, extra=extra)
    assert not list(tmp_path.iterdir())


def test_an_opened_checkpoint_is_a_lazy_state_source(tmp_path, new_run, same):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer)
    with checkpoint.open(tmp_path) as opened:
        assert opened.parameter_names() == run.optimizer.parameter_names()
        assert opened.group_options() == run.optimizer.group_options()
        state = opened.parameter_state("2.weight")
        (tmp_path / "optimizer-00001-of-00001.safetensors").rename(tmp_path / "away")
        assert state.step == 3
        (tmp_path / "away").rename(tmp_path / "optimizer-00001-of-00001.safetensors")
        want = run.optimizer.parameter_state("2.weight")
        assert same(dict(state.fields), dict(want.fields))
        assert torch.equal(state.decode("exp_avg_sq"), want.decode("exp_avg_sq"))
        with pytest.raises(KeyError):
            opened.parameter_state("nobody")


def test_an_opened_checkpoint_can_be_saved_again(tmp_path, new_run, same):
    run = new_run()
    checkpoint.save(tmp_path / "a", optimizer=run.optimizer, compression="none")
    checkpoint.save(tmp_path / "b", optimizer=checkpoint.open(tmp_path / "a"))
    other = new_run(steps=0)
    checkpoint.load(tmp_path / "b", optimizer=other.optimizer)
    for name in run.optimizer.parameter_names():
        want, got = run.optimizer.parameter_state(name), other.optimizer.parameter_state(name)
        assert same(dict(got.fields), dict(want.fields))


def test_uncompressed_shards_are_plain_safetensors_files(tmp_path, new_run):
    run = new_run()
    checkpoint.save(
        tmp_path, optimizer=run.optimizer, model=run.model, compression="none", max_shard_bytes=3000
    )
    stored = {}
    for path in tmp_path.glob("optimizer-*.safetensors"):
        stored |= load_file(path)
    for state in run.optimizer.parameter_states():
        for key, tensor in state.fields.items():
            assert torch.equal(stored.pop(f"{state.name}/{key}"), tensor)
    assert not stored
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    weights = {}
    for name, file in index["weight_map"].items():
        weights[name] = load_file(tmp_path / file)[name]
    assert all(torch.equal(weights.pop(k), v) for k, v in run.model.state_dict().items())
    assert not weights
    sizes = [v.numel() * v.element_size() for v in run.model.state_dict().values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_the_summary_counts_what_is_there(tmp_path, new_run):
    run = new_run()
    summary = checkpoint.save(tmp_path, optimizer=run.optimizer, max_shard_bytes=999).summary
    tensors = [tensor for state in run.optimizer.state.values() for tensor in state.values()]
    assert summary.parameters == len(run.optimizer.state) == 6
    assert summary.elements == sum(p.numel() for p in run.model.parameters())
    assert summary.state_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert summary.stored_bytes == sum(p.stat().st_size for p in tmp_path.glob("optimizer-*"))
    assert summary.step == 3


def test_progress_ends_at_its_total(tmp_path, new_run):
    run = new_run()
    calls: dict[str, list[tuple[int, int]]] = {"save": [], "load": [], "verify": []}
    checkpoint.save(
        tmp_path, optimizer=run.optimizer, progress=lambda *call: calls["save"].append(call)
    )
    checkpoint.load(
        tmp_path, optimizer=run.optimizer, progress=lambda *call: calls["load"].append(call)
    )
    checkpoint.verify(tmp_path, progress=lambda *call: calls["verify"].append(call))
    for seen in calls.values():
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] > 0


def test_compressible_state_is_stored_smaller_and_noise_never_larger(tmp_path):
    torch.manual_seed(0)
    even = nn.Parameter(torch.zeros(64, 512))
    optimizer = LUMA([("p", even)], seed=0)
    even.grad = torch.ones_like(even)
    optimizer.step()
    small = checkpoint.save(tmp_path / "even", optimizer=optimizer)
    assert small.summary.stored_bytes < small.summary.state_bytes / 5
    noise = torch.randint(0, 256, (100_000,), dtype=torch.uint8)
    manifest = checkpoint.save(tmp_path / "noise", optimizer=LUMA([even]), extra=[noise])
    (entry,) = (tensor for tensor in manifest.tensors if tensor.name == "/0")
    assert entry.raw
    assert entry.stored_bytes == noise.numel()
