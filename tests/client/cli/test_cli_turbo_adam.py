"""The commands that look into checkpoints, on the state of TurboAdam."""

import json
from pathlib import Path

import pytest
import torch

from luma_core import TurboAdam, checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one model, of different seeds and presets."""
    found = []
    for seed, preset in ((0, "5bit"), (1, "8bit")):
        torch.manual_seed(seed)
        param = torch.nn.Parameter(torch.randn(64, 256))
        optimizer = TurboAdam([("w", param)], seed=seed, preset=preset)
        for _ in range(3):
            param.grad = torch.randn_like(param)
            optimizer.step()
        found.append(tmp_path_factory.mktemp("turbo") / preset)
        checkpoint.save(found[-1], optimizer=optimizer)
    return found[0], found[1]


def test_inspect_names_the_codecs_and_the_bits(luma, folders) -> None:
    code, out, _ = luma("inspect", folders[0], "--json")
    found = json.loads(out)
    assert code == 0
    assert found["algorithm"] == "turbo_adam"
    codecs = found["groups"][0]["codecs"]
    assert [codec["name"] for codec in codecs.values()] == ["table_m", "root_v"]
    assert found["bits_per_parameter"] == pytest.approx(5.25 + 24 * 8 / (64 * 256))


def test_stats_and_verify_read_it(luma, folders) -> None:
    code, out, _ = luma("stats", folders[1], "--json")
    assert code == 0
    assert json.loads(out)["total"]["elements"] == 64 * 256
    assert luma("verify", folders[1])[0] == 0


def test_diff_compares_states_of_different_codecs(luma, folders) -> None:
    same = json.loads(luma("diff", folders[0], folders[0], "--json")[1])
    other = json.loads(luma("diff", folders[0], folders[1], "--json")[1])
    assert same["identical"] is True
    assert other["identical"] is False


def test_convert_turns_it_into_adamw_state(luma, folders, tmp_path) -> None:
    target = tmp_path / "adamw.pt"
    code, _, err = luma("convert", folders[0], target, "--to", "adamw")
    assert code == 0, err
    state = torch.load(target, weights_only=True)["state"][0]
    assert state["exp_avg"].shape == (64, 256)
    assert float(state["exp_avg_sq"].min()) > 0
