"""Flattening: the full checkpoint of one that builds on others, bit for bit."""

import shutil

import pytest
import torch

from luma_core import checkpoint
from luma_core.errors import CheckpointExistsError, CheckpointNotFoundError, ConfigurationError


@pytest.fixture
def chain(tmp_path, new_run):
    """A run and three checkpoints of it, each with differences to the one before."""
    run = new_run(steps=20)
    extra = {"rng": torch.arange(99), "epoch": 2}
    checkpoint.save(tmp_path / "0", optimizer=run.optimizer)
    for index in (1, 2):
        run.step(20 + index)
        checkpoint.save(
            tmp_path / str(index),
            optimizer=run.optimizer,
            model=run.model,
            extra=extra,
            base=tmp_path / str(index - 1),
            max_shard_bytes=4000,
        )
    return run


def everything(url):
    """All that a checkpoint holds."""
    opened = checkpoint.open(url)
    manifest = opened.manifest
    plain = {
        name: getattr(manifest, name)
        for name in ("algorithm", "named", "groups", "parameters", "extra", "aliases")
    }
    return plain, {entry.name: opened.read_tensor(entry) for entry in manifest.tensors}


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_it_holds_what_a_full_save_holds(tmp_path, chain, new_run, same, compression):
    done = []
    flat = checkpoint.flatten(
        tmp_path / "2",
        tmp_path / "flat",
        compression=compression,
        progress=lambda *counts: done.append(counts),
    )
    assert done[-1][0] == done[-1][1] > 0
    full = checkpoint.save(
        tmp_path / "full",
        optimizer=chain.optimizer,
        model=chain.model,
        extra={"rng": torch.arange(99), "epoch": 2},
        compression=compression,
    )
    assert (flat.version, flat.base, flat.chain) == (1, None, 1)
    assert flat.summary == full.summary
    assert flat.tensors == full.tensors
    assert [file.sha256 for file in flat.files] == [file.sha256 for file in full.files]
    source, expected = everything(tmp_path / "2"), everything(tmp_path / "full")
    assert source[0] == expected[0]
    for name, tensor in everything(tmp_path / "flat")[1].items():
        assert torch.equal(tensor, expected[1][name])
        assert torch.equal(tensor, source[1][name])
    for index in range(3):
        shutil.rmtree(tmp_path / str(index))
    assert checkpoint.verify(tmp_path / "flat").ok
    other = new_run(steps=0)
    loaded = checkpoint.load(tmp_path / "flat", optimizer=other.optimizer, model=other.model)
    assert same(other.snapshot(), chain.snapshot())
    assert loaded.extra["rng"].tolist() == list(range(99))


def test_a_full_checkpoint_may_be_flattened_as_well(tmp_path, chain):
    checkpoint.flatten(tmp_path / "0", tmp_path / "flat", max_shard_bytes=1000)
    opened = checkpoint.open(tmp_path / "flat")
    assert sum(file.kind == "optimizer" for file in opened.manifest.files) > 2
    for entry in checkpoint.open(tmp_path / "0").manifest.tensors:
        mine = next(e for e in opened.manifest.tensors if e.name == entry.name)
        assert torch.equal(
            opened.read_tensor(mine), checkpoint.open(tmp_path / "0").read_tensor(entry)
        )


def test_it_may_take_its_source_s_place(tmp_path, chain):
    before = everything(tmp_path / "2")
    with pytest.raises(CheckpointExistsError):
        checkpoint.flatten(tmp_path / "2", tmp_path / "2")
    flat = checkpoint.flatten(tmp_path / "2", tmp_path / "2", overwrite=True)
    shutil.rmtree(tmp_path / "0")
    shutil.rmtree(tmp_path / "1")
    after = everything(tmp_path / "2")
    assert flat.chain == 1
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in after[1])
    assert checkpoint.verify(tmp_path / "2").ok


def test_between_stores(tmp_path, chain, seaweedfs, new_prefix):
    store = seaweedfs.store(new_prefix)
    checkpoint.flatten(tmp_path / "2", store)
    assert checkpoint.open(store).manifest.summary.step == 22
    assert checkpoint.verify(store).ok


def test_what_cannot_be_flattened(tmp_path, chain):
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.flatten(tmp_path / "9", tmp_path / "flat")
    with pytest.raises(ConfigurationError, match="compression='lz4'"):
        checkpoint.flatten(tmp_path / "2", tmp_path / "flat", compression="lz4")
    with pytest.raises(ConfigurationError, match="max_memory_bytes"):
        checkpoint.flatten(tmp_path / "2", tmp_path / "flat", max_memory_bytes=1)
    assert not (tmp_path / "flat").exists()
