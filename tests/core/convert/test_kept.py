"""What every format that can be written keeps beside the moments, and what the report tells."""

import pytest
import torch
from torch import nn

from luma_core import convert

OPTIONS = {"initial_lr": 0.5, "owner": {"name": "é", "list": [1, None, True, "x"]}, "note": "a.b"}
STEPS = {"0.weight": 7, "0.bias": 7, "1.weight": 3, "1.bias": 9_007_199_254_740_993}
TARGETS = [(name, "fp32") for name in ("adamw", "dcp", "deepspeed-universal", "fsdp", "lightning")]
TARGETS += [("luma", codec) for codec in convert.codec_choices()]


@pytest.fixture
def state(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 8))
    groups = [
        {"params": list(model[0].named_parameters("0")), "lr": 0.25, **OPTIONS},
        {"params": [("1.weight", model[1].weight)], "betas": (0.5, 0.75)},
        {"params": [("1.bias", model[1].bias)], "weight_decay": 0.0, "maximize": True},
    ]
    adamw = torch.optim.AdamW(groups)
    model(torch.randn(4, 256)).square().mean().backward()
    adamw.step()
    content = adamw.state_dict()
    for entry, step in zip(content["state"].values(), STEPS.values(), strict=True):
        entry["step"] = torch.tensor(step)
    torch.save(content, tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    marked = {"pytorch-lightning_version": "2.6.0", "state_dict": model.state_dict()}
    torch.save({**marked, "optimizer_states": [content]}, tmp_path / "template.ckpt")
    return tmp_path


def test_every_target_is_looked_at():
    assert {name for name, _ in TARGETS} == set(convert.target_names())


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize(("to", "codec"), TARGETS)
def test_options_and_steps_are_kept(state, to, codec):
    models = {"deepspeed-universal": "weights.pt", "lightning": "template.ckpt"}
    model = state / models[to] if to in models else None
    target = state / ("b.ckpt" if to == "lightning" else "b")
    report = convert.convert(state / "a.pt", target, to=to, codec=codec, model=model)
    before, after = (convert.open_source(path) for path in (state / "a.pt", target))
    known = [info.name for info in before.parameters()]
    assert [info.name for info in after.parameters()] == known == list(STEPS)
    for index, (want, got) in enumerate(zip(before.groups(), after.groups(), strict=True)):
        assert {key: got[key] for key in want} == want
        assert (OPTIONS.items() <= got.items()) == (index == 0)
    assert report.errors.keys() == {"exp_avg", "exp_avg_sq"}
    worst = dict.fromkeys(report.errors, 0.0)
    for info in after.parameters():
        # Steps are float32 in torch's own layout, as torch itself keeps them.
        exact = to == "luma"
        assert info.step == (STEPS[info.name] if exact else int(torch.tensor(float(info.step))))
        assert info.step == pytest.approx(STEPS[info.name], rel=1e-7)
        found, wanted = after.read(info.name), before.read(info.name)
        for moment in report.errors:
            x, y = getattr(found, moment), getattr(wanted, moment)
            worst[moment] = max(worst[moment], float((x - y).abs().max() / y.abs().max()))
    for moment, error in report.errors.items():
        assert error.relative_max == pytest.approx(worst[moment], rel=1e-3, abs=1e-9)
        assert (error.relative_rms > 0) == (codec != "fp32")


@pytest.mark.parametrize("to", ["adamw", "fsdp"])
def test_a_file_that_is_replaced_keeps_its_permissions_and_links_to_it(state, to):
    real, link = state / "real/state.pt", state / "latest.pt"
    real.parent.mkdir()
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real/state.pt")
    convert.convert(state / "a.pt", link, to=to, overwrite=True)
    assert link.is_symlink()
    assert str(link.readlink()) == "real/state.pt"
    assert real.stat().st_mode & 0o777 == 0o640
    assert convert.open_source(link).parameters()
    assert [path.name for path in real.parent.iterdir()] == ["state.pt"]


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_a_folder_that_is_replaced_keeps_its_permissions_and_links_to_it(state):
    real, link = state / "real", state / "latest"
    convert.convert(state / "a.pt", real, to="dcp")
    real.chmod(0o750)
    link.symlink_to("real")
    convert.convert(state / "a.pt", link, to="dcp", overwrite=True)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o750
    convert.convert(link, state / "back", to="luma")


def test_a_link_to_nothing_yet_is_written_through(state):
    (state / "link.pt").symlink_to("there.pt")
    convert.convert(state / "a.pt", state / "link.pt", to="adamw")
    assert (state / "link.pt").is_symlink()
    assert (state / "there.pt").is_file()
