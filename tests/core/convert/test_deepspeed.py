"""Shards of ZeRO, written by DeepSpeed itself on two ranks."""

import random
import shutil

import pytest
import torch

from luma_core import checkpoint, convert
from luma_core.errors import CheckpointNotFoundError, ConversionError, LumaError
from tests.deepspeed.runs import needs_deepspeed, run

pytestmark = needs_deepspeed
STAGES = [1, pytest.param(2, marks=pytest.mark.heavy), pytest.param(3, marks=pytest.mark.heavy)]


@pytest.fixture(scope="module", params=STAGES)
def made(request, tmp_path_factory):
    """A folder of DeepSpeed's, and what it says its state is."""
    folder = tmp_path_factory.mktemp("deepspeed")
    return folder, run("train", request.param, folder)["state"]


@pytest.fixture
def folder(made):
    return made[0]


@pytest.mark.parametrize("step", [None, "trained"])
def test_the_shards_make_what_deepspeed_says_the_state_is(made, step):
    folder, expected = made
    source = convert.open_source(folder / step if step else folder)
    assert (source.format, source.named) == ("deepspeed", True)
    assert {info.name for info in source.parameters()} == set(expected)
    for name, moments in expected.items():
        found = source.read(name)
        assert found.info.step == 2
        for moment, want in moments.items():
            assert torch.equal(getattr(found, moment), want.float())
            assert float(want.abs().max()) > 0
        group = source.groups()[found.info.group]
        assert group["weight_decay"] == (0.0 if name.endswith("bias") else 0.01)


def test_it_becomes_a_checkpoint(tmp_path, folder):
    convert.convert(folder, tmp_path / "c", to="luma")
    assert checkpoint.verify(tmp_path / "c").ok
    assert [state.step for state in checkpoint.open(tmp_path / "c").states()] == [2] * 4


def test_shards_that_are_missing_or_cut_otherwise_are_refused(tmp_path, folder):
    step = tmp_path / "step"
    shutil.copytree(folder / "trained", step)
    first, second = sorted(step.glob("*_optim_states.pt"))
    first.rename(step / first.name.replace("rank_0_mp", "rank_2_mp"))
    with pytest.raises(CheckpointNotFoundError, match="some ranks are missing"):
        convert.open_source(step)
    (step / first.name.replace("rank_0_mp", "rank_2_mp")).rename(first)
    tensor_parallel = second.rename(step / second.name.replace("mp_rank_00", "mp_rank_01"))
    with pytest.raises(ConversionError, match="model parallelism"):
        convert.open_source(step)
    tensor_parallel.unlink()
    with pytest.raises(ConversionError, match="not as ZeRO makes them"):
        convert.open_source(step)
    for path in step.glob("*model_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointNotFoundError, match="no model states"):
        convert.open_source(step)


def test_damaged_shards_are_read_or_refused(tmp_path, folder):
    files = sorted((folder / "trained").glob("*.pt"))
    refused = 0
    for seed in range(60):
        rng = random.Random(seed)
        step = tmp_path / "step"
        shutil.rmtree(step, ignore_errors=True)
        shutil.copytree(folder / "trained", step)
        chosen = rng.choice(files)
        content = bytearray(chosen.read_bytes())
        for _ in range(8):
            # The pickle, which says what is where, comes first.
            content[rng.randrange(min(len(content), 3000))] = rng.randrange(256)
        (step / chosen.name).write_bytes(content)
        try:
            source = convert.open_source(step)
            for info in source.parameters():
                source.read(info.name)
        except LumaError:
            refused += 1
    assert refused > 20


def test_the_name_in_latest_cannot_leave_the_folder(tmp_path):
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(ConversionError, match="not the name of a folder"):
        convert.open_source(tmp_path, format="deepspeed")
