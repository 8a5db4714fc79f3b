"""Checkpoints that several processes write are whole, exact, and ordinary for everybody else."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luma_core import LUMA, checkpoint
from luma_core.convert import convert

from .harness import HERE, finish, run, start

KINDS = ["luma", "turbo_5bit", "mini", "mini_whole", "lamb", "muon", "muon_8bit"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    import runs

    yield runs
    sys.modules.pop("runs")


@pytest.mark.parametrize(
    ("kinds", "worlds"),
    [
        (["luma"], [2]),
        pytest.param(KINDS, [1, 2, 3, 8], marks=[pytest.mark.heavy, pytest.mark.timeout(600)]),
    ],
    ids=["one", "all"],
)
def test_resharding_is_exact(kinds: list[str], worlds: list[int], tmp_path: Path) -> None:
    run(4, tmp_path, "checkpoint_cases", [f"save:{kind}" for kind in kinds])
    for world in worlds:
        cases = [*(f"load:{kind}" for kind in kinds), "load_cut_blocks", "refused"]
        run(world, tmp_path, "checkpoint_cases", cases)


def test_one_machine_reads_what_many_wrote(tmp_path: Path, runs) -> None:
    run(4, tmp_path, "checkpoint_cases", ["save_replicas", "one_fails", "save_columns"])
    expected = runs.Run("luma").steps(4)
    assert checkpoint.verify(tmp_path / "luma").ok
    opened = checkpoint.open(tmp_path / "luma")
    assert opened.manifest.version == 3
    for state in expected.optimizer.parameter_states():
        found = opened.parameter_state(state.name)
        assert (found.step, found.noise_key, found.nonfinite) == (4, state.noise_key, 0)
        for key, value in state.fields.items():
            assert torch.equal(found.fields[key], value), (state.name, key)
        if value.dim() > 1:
            rows = opened.read(state.name, "exp_avg", rows=slice(1, 3))
            assert torch.equal(rows, state.decode("exp_avg")[1:3])
    plain = runs.Run("luma")
    checkpoint.load(tmp_path / "luma", optimizer=plain.optimizer)
    for name, param in plain.params.items():
        param.data.copy_(expected.params[name].data)
    plain.done = 4
    runs.assert_same(plain.steps(3).tensors(), expected.steps(3).tensors())

    convert(tmp_path / "luma", tmp_path / "adamw.pt", to="adamw")
    exported = torch.load(tmp_path / "adamw.pt", weights_only=True)
    again = LUMA(runs.Run("luma").params.items(), seed=3)
    again.import_adamw_state(exported)
    assert {state.step for state in again.parameter_states()} == {4}


@pytest.mark.parametrize("worlds", [[2], pytest.param([3, 1, 2], marks=pytest.mark.heavy)])
def test_weights_and_saves_behind_training(worlds: list[int], tmp_path: Path) -> None:
    cases = ["save_weights", "load_weights", "save_behind_training", "numbered_steps"]
    run(worlds[0], tmp_path, "weights_cases", cases)
    for world in worlds[1:]:
        run(world, tmp_path, "weights_cases", ["load_weights"])
    expected = torch.load(tmp_path / "expected.pt")
    stored = {}
    for path in (tmp_path / "w").glob("model-*.safetensors"):
        stored |= load_file(path)
    assert set(stored) == {"embed.weight", "inner.weight", "inner.bias", "scale"} | {
        f"norm.{kind}" for kind in ("weight", "bias")
    }
    for name, value in stored.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["held", "behind"])
def test_a_killed_process_leaves_the_previous_checkpoint(how: str, tmp_path: Path, runs) -> None:
    run(4, tmp_path, "checkpoint_cases", ["save:luma"])
    before = checkpoint.open(tmp_path / "luma").manifest
    finish(start(4, tmp_path, "checkpoint_cases", [f"one_is_killed:{how}"], timeout_seconds=25))
    assert sorted(p.name for p in tmp_path.glob("survived-*")) == [
        "survived-0",
        "survived-1",
        "survived-3",
    ]
    assert checkpoint.open(tmp_path / "luma").manifest == before
    assert checkpoint.verify(tmp_path / "luma").ok
    plain = runs.Run("luma")
    checkpoint.save(tmp_path / "luma", optimizer=plain.steps(1).optimizer, overwrite=True)
    names = {path.name for path in (tmp_path / "luma").iterdir()}
    assert names == {
        "luma.json",
        *(f.name for f in checkpoint.open(tmp_path / "luma").manifest.files),
    }
