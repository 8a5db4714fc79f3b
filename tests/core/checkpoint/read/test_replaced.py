"""A reader whose checkpoint was replaced or removed is told that, and not that it is damaged."""

import pytest

from luma_core import checkpoint
from luma_core.checkpoint.storage.open import open_store
from luma_core.errors import CheckpointReplacedError, CorruptCheckpointError

WAYS = {
    "state": lambda opened: opened.parameter_state("0.weight").fields["exp_avg.codes"],
    "rows": lambda opened: opened.read("0.weight", "exp_avg", rows=slice(0, 3)),
    "weights": lambda opened: opened.read_tensor(opened.model_tensors()[0]),
    "extra": lambda opened: opened.extra(),
    "whole": lambda opened: opened.read_checked(["optimizer"], ["model"], put=lambda *_: None),
    "save": lambda opened: checkpoint.save(
        open_store("memory://replaced/copy"), optimizer=opened, overwrite=True
    ),
}


@pytest.fixture(params=["local", "memory", "s3"])
def place(request, tmp_path, new_prefix):
    if request.param == "s3":
        yield request.getfixturevalue("seaweedfs").store(new_prefix)
    elif request.param == "local":
        yield open_store(tmp_path / "c")
    else:
        store = open_store("memory://replaced/c")
        yield store
        store.fs.rm("/replaced", recursive=True)


def save(run, place, **options):
    extra = {"rng": run.model[0].bias.detach().clone()}
    return checkpoint.save(place, optimizer=run.optimizer, model=run.model, extra=extra, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_of_a_replaced_checkpoint_is_told_so(place, new_run, way):
    run = new_run()
    save(run, place)
    opened = checkpoint.open(place)
    save(run, place, overwrite=True)
    with pytest.raises(CheckpointReplacedError, match=r"was replaced.*Open it again"):
        WAYS[way](opened)
    WAYS[way](checkpoint.open(place))


def test_a_reader_of_a_removed_checkpoint_is_told_so(place, new_run):
    save(new_run(), place)
    opened = checkpoint.open(place)
    for name in sorted(place.names(), key=lambda name: name != "luma.json"):
        place.delete(name)
    with pytest.raises(CheckpointReplacedError, match="was removed"):
        opened.read_tensor(opened.model_tensors()[0])


def test_damage_is_still_damage(place, new_run):
    save(new_run(), place)
    opened = checkpoint.open(place)
    place.delete(opened.model_tensors()[0].file)
    with pytest.raises(CorruptCheckpointError, match="missing"):
        opened.read_tensor(opened.model_tensors()[0])


@pytest.mark.parametrize("work", [checkpoint.load, checkpoint.verify])
def test_what_is_replaced_in_the_midst_of_work_is_told(tmp_path, new_run, work):
    run = new_run()
    save(run, tmp_path)
    replaced = []

    def progress(done, _total):
        if not replaced:
            replaced.append(done)
            save(run, tmp_path, overwrite=True)

    with pytest.raises(CheckpointReplacedError):
        work(tmp_path, progress=progress)


def test_a_manifest_that_is_replaced_while_it_is_read_is_read_again(tmp_path, new_run, monkeypatch):
    run = new_run(steps=0)
    save(run, tmp_path)
    store = open_store(tmp_path)
    size = store.size

    def sized(name):
        found = size(name)
        monkeypatch.setattr(store, "size", size)
        run.optimizer.param_groups[0]["mine"] = "longer"
        last.append(save(run, tmp_path, overwrite=True))
        return found

    last = []
    monkeypatch.setattr(store, "size", sized)
    assert checkpoint.open(store).manifest == last[0]
