"""No change to any file goes unnoticed, and none is half loaded."""

import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luma_core import checkpoint
from luma_core.checkpoint.write import save_run as writer
from luma_core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnknownCodecError,
    UnsafeNameError,
    UnsupportedVersionError,
)

SHARD = "optimizer-00001-of-00001.safetensors"
ATTEMPTS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["none", "zstd"], scope="module")
def damaged(request, tmp_path_factory, new_run):
    """A checkpoint to be damaged and mended, and a run that must never load it damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    run = new_run(steps=4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", 1024)
        checkpoint.save(
            folder,
            optimizer=run.optimizer,
            model=run.model,
            extra={"rng": torch.arange(50), "epoch": 1},
            compression=request.param,
        )
    victim = new_run(steps=1, seed=2)
    return folder, victim, victim.snapshot()


def _expect_refusal(folder, victim, before, same):
    assert not checkpoint.verify(folder).ok
    with pytest.raises((CorruptCheckpointError, UnsupportedVersionError)):
        checkpoint.load(folder, optimizer=victim.optimizer, model=victim.model)
    assert same(victim.snapshot(), before)


@ATTEMPTS
@given(data=st.data())
def test_any_flipped_byte_of_any_file_is_caught(damaged, same, data):
    folder, victim, before = damaged
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(content)
    changed[at] ^= flip
    path.write_bytes(changed)
    try:
        _expect_refusal(folder, victim, before, same)
    finally:
        path.write_bytes(content)


@ATTEMPTS
@given(data=st.data())
def test_any_file_cut_or_extended_is_caught(damaged, same, data):
    folder, victim, before = damaged
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    keep = data.draw(st.integers(0, len(content) - 1))
    tail = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(data.draw(st.sampled_from([content[:keep], content + tail])))
    try:
        _expect_refusal(folder, victim, before, same)
    finally:
        path.write_bytes(content)


def test_the_undamaged_checkpoint_verifies(damaged):
    assert checkpoint.verify(damaged[0]).ok


def test_a_missing_shard_is_named(damaged, same):
    folder, victim, before = damaged
    path = folder / SHARD
    content = path.read_bytes()
    path.unlink()
    try:
        (problem,) = checkpoint.verify(folder).problems
        assert problem == checkpoint.Problem(SHARD, "the file is missing")
        with pytest.raises(CorruptCheckpointError, match=f"{SHARD}: the file is missing"):
            checkpoint.load(folder, optimizer=victim.optimizer)
        with pytest.raises(CorruptCheckpointError, match=f"{SHARD}: the file is missing"):
            _ = checkpoint.open(folder).parameter_state("0.weight").fields["exp_avg.codes"]
    finally:
        path.write_bytes(content)
    assert same(victim.snapshot(), before)


def test_a_missing_index_is_noted_and_does_no_harm(damaged, new_run):
    folder, _, _ = damaged
    path = folder / "model.safetensors.index.json"
    content = path.read_bytes()
    path.unlink()
    try:
        report = checkpoint.verify(folder)
        assert report.ok
        assert report.notes == (checkpoint.Problem(path.name, "the file is missing"),)
        checkpoint.load(folder, model=new_run().model)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda head: head[:5], "the file ends at byte 5"),
        (lambda head: (2**63).to_bytes(8, "little") + head[8:], "claims 9223372036854775808"),
        (lambda head: head.replace(b'"I16"', b'"U16"', 1), "disagrees with the manifest"),
    ],
)
def test_a_wrong_header_is_told_when_a_tensor_is_read(tmp_path, new_run, make, said):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer, compression="none")
    path = tmp_path / SHARD
    path.write_bytes(make(path.read_bytes()))
    state = checkpoint.open(tmp_path).parameter_state("0.weight")
    with pytest.raises(CorruptCheckpointError, match=said):
        _ = state.fields["exp_avg.codes"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_byte_is_caught_when_only_one_tensor_is_read(tmp_path, new_run, compression):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer, compression=compression)
    path = tmp_path / SHARD
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    opened = checkpoint.open(tmp_path)
    last = opened.manifest.tensors[-1]
    with pytest.raises(CorruptCheckpointError, match=re.escape(repr(last.name))):
        opened.read_tensor(last)
    opened.read_tensor(opened.manifest.tensors[0])


def test_a_folder_without_manifest_holds_no_checkpoint(tmp_path, new_run):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer)
    (tmp_path / "luma.json").unlink()
    assert not checkpoint.exists(tmp_path)
    for use in (checkpoint.open, checkpoint.load, checkpoint.verify):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint here"):
            use(tmp_path)
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.open(tmp_path / "nowhere")


def _tensor(body, **changes):
    body["tensors"][0].update(changes)


def _file(body, **changes):
    body["files"][0].update(changes)


def _parameter(body, **changes):
    body["parameters"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda b: b.update(version=9, new=1), UnsupportedVersionError, "format version 9"),
        (lambda b: b.update(version=0), CorruptCheckpointError, "manifest.version is 0"),
        (lambda b: b.update(version=True), CorruptCheckpointError, "manifest.version"),
        (lambda b: b.pop("version"), CorruptCheckpointError, "manifest.version: Field required"),
        (lambda b: b.update(format="other"), CorruptCheckpointError, "manifest.format"),
        (lambda b: b.update(surprise=1), CorruptCheckpointError, "manifest.surprise: Unexpected"),
        (lambda b: b.pop("groups"), CorruptCheckpointError, "manifest.groups: Field required"),
        (lambda b: b.update(named="yes"), CorruptCheckpointError, "manifest.named: Input should"),
        (lambda b: b.update(generation=0), CorruptCheckpointError, "1 or more"),
        (lambda b: b.update(chunk_bytes=1 << 40), CorruptCheckpointError, "chunk_bytes"),
        (lambda b: b.update(chunk_bytes=0), CorruptCheckpointError, "chunk_bytes"),
        (lambda b: b.update(extra={"$tensor": "/x"}), CorruptCheckpointError, "'/x'"),
        (lambda b: b.update(extra={"$tensor": {}}), CorruptCheckpointError, "named by a string"),
        (lambda b: _parameter(b, shape=[0, 2**62]), CorruptCheckpointError, "shape"),
        (lambda b: _parameter(b, shape=[2**30, 2**31]), CorruptCheckpointError, "shape"),
        (lambda b: _file(b, name="../" + SHARD), UnsafeNameError, "../"),
        (lambda b: _file(b, name="/etc/passwd"), UnsafeNameError, "/etc/passwd"),
        (lambda b: _file(b, name="luma.json"), CorruptCheckpointError, "an optimizer shard"),
        (lambda b: _file(b, bytes=-1), CorruptCheckpointError, "files.0.bytes is -1"),
        (lambda b: _file(b, bytes=10), CorruptCheckpointError, "at least"),
        (lambda b: _file(b, sha256="0" * 63), CorruptCheckpointError, "files.0.sha256"),
        (lambda b: b["files"].append(b["files"][0]), CorruptCheckpointError, "there once"),
        (lambda b: _parameter(b, shape=[-1, 48]), CorruptCheckpointError, "parameters.0.shape"),
        (lambda b: _parameter(b, shape=[40, 47]), CorruptCheckpointError, "by its codec"),
        (lambda b: _parameter(b, shape=[2**40, 2**40]), CorruptCheckpointError, "0.shape"),
        (lambda b: _parameter(b, group=1), CorruptCheckpointError, "parameters.0.group is 1"),
        (lambda b: _parameter(b, step=-1), CorruptCheckpointError, "parameters.0.step is -1"),
        (lambda b: _parameter(b, noise_key=1 << 63), CorruptCheckpointError, "signed 64-bit"),
        (lambda b: _parameter(b, dtype="int8"), CorruptCheckpointError, "parameters.0.dtype"),
        (
            lambda b: b["parameters"].append(b["parameters"][0]),
            CorruptCheckpointError,
            "parameters.6.name is '0.weight'; it must be there once",
        ),
        (
            lambda b: b["parameters"][0]["codecs"]["exp_avg"].update(name="zip"),
            UnknownCodecError,
            "'0.weight': codec 'zip' is not known",
        ),
        (
            lambda b: b["parameters"][0]["codecs"]["exp_avg"].update(block_size=-5),
            CorruptCheckpointError,
            "block_size=-5",
        ),
        (lambda b: _tensor(b, shape=[2**50, 48]), CorruptCheckpointError, "chunks"),
        (lambda b: _tensor(b, shape=[-40, -48]), CorruptCheckpointError, "sizes of 0 or more"),
        (lambda b: _tensor(b, dtype="U16"), CorruptCheckpointError, "a known dtype"),
        (lambda b: _tensor(b, offset=8), CorruptCheckpointError, "neither gap nor overlap"),
        (lambda b: _tensor(b, file="model-1"), CorruptCheckpointError, "manifest.tensors"),
        (lambda b: b["tensors"].pop(), CorruptCheckpointError, "by its codec"),
        (lambda b: _tensor(b, name="other"), CorruptCheckpointError, "0.weight/exp_avg.codes"),
        (
            lambda b: _tensor(b, chunks=[[0, 0, False]]),
            CorruptCheckpointError,
            "chunks.0",
        ),
        (
            lambda b: _tensor(b, chunks=[[1 << 50, 0, True]]),
            CorruptCheckpointError,
            "a description of 3840 bytes",
        ),
        (lambda b: b.update(aliases={"a": "b"}), CorruptCheckpointError, "aliases.a"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_field(
    tmp_path, new_run, edit_manifest, change, error, said
):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer)
    edit_manifest(tmp_path, change)
    with pytest.raises(error, match=re.escape(said)) as raised:
        checkpoint.load(tmp_path)
    if error is CorruptCheckpointError:
        assert str(tmp_path / "luma.json") in str(raised.value)
    report = checkpoint.verify(tmp_path)
    assert not report.ok


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"manifest": {"version": NaN}}',
        b'{"manifest": {"version": 1, "extra": "\\ud800"}}',
        b'{"manifest": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "luma.json").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"luma\.json"):
        checkpoint.open(tmp_path)
    assert not checkpoint.verify(tmp_path).ok


def test_an_oversized_manifest_is_refused_unread(tmp_path):
    with (tmp_path / "luma.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptCheckpointError, match="at most"):
        checkpoint.open(tmp_path)


def test_a_manifest_in_another_form_is_refused(tmp_path, new_run):
    checkpoint.save(tmp_path, optimizer=new_run().optimizer)
    path = tmp_path / "luma.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b""))
    with pytest.raises(CorruptCheckpointError, match="canonical form"):
        checkpoint.open(tmp_path)


def test_a_shard_of_another_checkpoint_is_caught(tmp_path, new_run):
    for name, steps in (("a", 3), ("b", 4)):
        checkpoint.save(tmp_path / name, optimizer=new_run(steps=steps).optimizer)
    shutil.copy(tmp_path / "a" / SHARD, tmp_path / "b" / SHARD)
    assert not checkpoint.verify(tmp_path / "b").ok
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "b", optimizer=new_run().optimizer)
