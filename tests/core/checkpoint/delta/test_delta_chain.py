"""A chain of which a part is missing, changed or damaged: nothing wrong is ever read from it."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luma_core import checkpoint, stats
from luma_core.checkpoint.write import save_run as writer
from luma_core.errors import (
    BrokenChainError,
    CheckpointError,
    CorruptCheckpointError,
    UnsafeNameError,
)

SHARD = "optimizer-00001-of-00001.safetensors"
READERS = {
    "load": lambda url, run: checkpoint.load(url, optimizer=run.optimizer),
    "read": lambda url, run: checkpoint.open(url).read("0.weight", "exp_avg_sq"),
    "stats": lambda url, run: stats.compute(checkpoint.open(url)),
    "flatten": lambda url, run: checkpoint.flatten(url, url.parent / "flat"),
    "base": lambda url, run: checkpoint.save(
        url.parent / "next", optimizer=run.optimizer, base=url
    ),
}


@pytest.fixture
def chain(tmp_path, new_run):
    """Three checkpoints, each with differences to the one before."""
    make_chain(tmp_path, new_run)
    return tmp_path


def make_chain(folder, new_run):
    run = new_run(steps=20)
    checkpoint.save(folder / "0", optimizer=run.optimizer, model=run.model)
    for index in (1, 2):
        run.step(20 + index)
        base = folder / str(index - 1)
        saved = checkpoint.save(folder / str(index), optimizer=run.optimizer, base=base)
        assert saved.chain == index + 1
    return run


def save_again(folder, new_run, **options):
    checkpoint.save(folder, optimizer=new_run(steps=20).optimizer, overwrite=True, **options)


def expect(chain, new_run, same, reader, message, error=BrokenChainError):
    victim = new_run(steps=1, seed=3)
    before = victim.snapshot()
    with pytest.raises(error, match=message) as raised:
        READERS[reader](chain / "2", victim)
    assert "hint" not in raised.value.message
    assert raised.value.hint
    assert same(victim.snapshot(), before)
    assert not checkpoint.exists(chain / "flat")
    assert not checkpoint.exists(chain / "next")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("gone", ["0", "1"])
def test_a_base_that_is_missing(chain, new_run, same, reader, gone):
    shutil.rmtree(chain / gone)
    expect(chain, new_run, same, reader, f"the checkpoint '{gone}' beside it, which is missing")
    report = checkpoint.verify(chain / "2")
    assert [p.file for p in report.problems] == ["luma.json"]
    assert f"'{gone}' beside it, which is missing" in report.problems[0].message


@pytest.mark.parametrize("reader", READERS)
def test_a_base_that_was_replaced(chain, new_run, same, reader):
    save_again(chain / "0", new_run)
    expect(chain, new_run, same, reader, "the checkpoint '0' beside it, which has changed")
    assert "has changed" in checkpoint.verify(chain / "2").problems[0].message
    assert checkpoint.verify(chain / "0").ok


@pytest.mark.parametrize("reader", READERS)
def test_a_base_whose_manifest_is_damaged(chain, new_run, same, reader):
    (chain / "1" / "luma.json").write_text("{")
    expect(chain, new_run, same, reader, "the checkpoint '1' beside it, which cannot be read")
    assert not checkpoint.verify(chain / "2").ok


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"base"}))
def test_a_base_whose_shard_is_missing(chain, new_run, same, reader):
    (chain / "0" / SHARD).unlink()
    victim = new_run(steps=1, seed=3)
    before = victim.snapshot()
    with pytest.raises(CorruptCheckpointError, match=f"0/{SHARD}: the file is missing"):
        READERS[reader](chain / "2", victim)
    assert same(victim.snapshot(), before)
    report = checkpoint.verify(chain / "2")
    assert [(p.file, p.message) for p in report.problems] == [(f"0/{SHARD}", "the file is missing")]


def test_a_listing_needs_no_base(chain):
    shutil.rmtree(chain / "0")
    opened = checkpoint.open(chain / "2")
    assert opened.manifest.chain == 3
    assert opened.manifest.summary.step == 22


def test_the_chain_is_what_it_takes(chain):
    opened = checkpoint.open(chain / "2")
    assert [member.manifest.summary.step for member in opened.chain()] == [22, 21, 20]
    assert checkpoint.verify(chain / "2").files == 6
    assert checkpoint.verify(chain / "0").files == 4


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, new_run):
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", 1024)
        run = make_chain(folder, new_run)
    return folder, run.snapshot(), new_run(steps=1, seed=2)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_flipped_byte_of_any_member_gives_wrong_values(damaged, same, data):
    folder, expected, victim = damaged
    files = [f for f in sorted(folder.glob("*/*")) if "model" not in f.name]
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    before = victim.snapshot()
    try:
        assert not checkpoint.verify(folder / "2").ok
        loaded = False
        try:
            checkpoint.load(folder / "2", optimizer=victim.optimizer)
            loaded = True
        except CheckpointError:
            assert same(victim.snapshot(), before)
        if loaded:
            # The byte belongs to a chunk of a base that no difference needs.
            state = {key: value for key, value in expected.items() if key.startswith("s/")}
            assert same({k: v for k, v in victim.snapshot().items() if k in state}, state)
    finally:
        path.write_bytes(content)


def _entry(body, name="0.weight/exp_avg_sq.codes"):
    return next(entry for entry in body["tensors"] if entry["name"] == name)


def _other_crc(body):
    _entry(body)["deltas"][0] ^= 1


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda b: b["base"].update(folder="../0"), UnsafeNameError, "'../0' is not safe"),
        (lambda b: b["base"].update(folder="/etc"), UnsafeNameError, "'/etc' is not safe"),
        (lambda b: b["base"].update(digest="0"), CorruptCheckpointError, "base.digest is '0'"),
        (lambda b: b["base"].update(chain=0), CorruptCheckpointError, "base.chain is 0"),
        (lambda b: b["base"].update(chain=32), CorruptCheckpointError, "base.chain is 32"),
        (lambda b: b["base"].update(chain=1), CorruptCheckpointError, "has changed"),
        (lambda b: b["base"].update(folder="0"), CorruptCheckpointError, "has changed"),
        (lambda b: b["base"].update(folder="2"), CorruptCheckpointError, "has changed"),
        (lambda b: b.update(base=None), CorruptCheckpointError, "version is 2; it must be 1"),
        (lambda b: b.update(version=1), CorruptCheckpointError, "not in canonical form"),
        (lambda b: b.pop("base"), CorruptCheckpointError, "not in canonical form"),
        (lambda b: b["base"].update(url="x"), CorruptCheckpointError, "base.url"),
        (lambda b: _entry(b)["deltas"].append(1), CorruptCheckpointError, "deltas is '2 items'"),
        (lambda b: _entry(b).update(deltas=[-1]), CorruptCheckpointError, "the CRC-32 of a chunk"),
        (_other_crc, CorruptCheckpointError, "together have another CRC-32"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(chain, new_run, edit_manifest, change, error, said):
    edit_manifest(chain / "2", change)
    with pytest.raises(error) as raised:
        checkpoint.load(chain / "2", optimizer=new_run(steps=0).optimizer)
    assert said in str(raised.value)


def test_a_base_without_the_tensor_is_refused(tmp_path, new_run, edit_manifest):
    run = new_run(steps=20)
    other = new_run(steps=20, block_size=16)
    checkpoint.save(tmp_path / "other", optimizer=other.optimizer)
    checkpoint.save(tmp_path / "0", optimizer=run.optimizer)
    run.step(21)
    checkpoint.save(tmp_path / "1", optimizer=run.optimizer, base=tmp_path / "0")
    digest = checkpoint.open(tmp_path / "other").manifest.digest

    def change(body):
        body["base"].update(folder="other", digest=digest)

    edit_manifest(tmp_path / "1", change)
    with pytest.raises(CorruptCheckpointError, match=r"tensor '.*' of its base, which has none"):
        checkpoint.load(tmp_path / "1", optimizer=new_run(steps=0).optimizer)
    assert not checkpoint.verify(tmp_path / "1").ok
