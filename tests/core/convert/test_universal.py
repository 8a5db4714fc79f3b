"""DeepSpeed's universal checkpoints: made, converted and continued from by DeepSpeed itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from luma_core import checkpoint, convert
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConversionError,
)
from tests.deepspeed.runs import needs_deepspeed, run

MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module", params=[1, 2, 3])
def trained(request, tmp_path_factory):
    """A run's folder with its ZeRO and universal checkpoints, its stage, and its state."""
    folder = tmp_path_factory.mktemp("universal")
    told = run("train", request.param, folder)
    module = "deepspeed.checkpoint.ds_to_universal"
    made = subprocess.run(
        [
            *[sys.executable, "-m", module, "--inject_missing_state"],
            *["--input_folder", str(folder / "trained"), "--output_folder", str(folder / "u")],
            *["--num_extract_workers", "1", "--num_merge_workers", "1"],
        ],
        capture_output=True,
        text=True,
        env={"DS_ACCELERATOR": "cpu", "PATH": str(Path(sys.executable).parent)},
        timeout=100,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return folder, request.param, told


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@needs_deepspeed
@pytest.mark.heavy
@pytest.mark.timeout(400)
@pytest.mark.parametrize("above", [False, True])
def test_what_deepspeed_made_is_read(trained, above):
    folder, _, told = trained
    source = convert.open_source(folder / "u", format=None)
    if above:
        source = convert.open_source(folder, format="deepspeed-universal")
    assert (source.format, source.named) == ("deepspeed-universal", True)
    assert {info.name for info in source.parameters()} == set(told["state"])
    for name, moments in told["state"].items():
        found = source.read(name)
        assert found.info.step == 2
        for moment, want in moments.items():
            assert torch.equal(getattr(found, moment), want.float())
            assert float(want.abs().max()) > 0
        group = source.groups()[found.info.group]
        assert group["weight_decay"] == (0.0 if name.endswith("bias") else 0.01)


@needs_deepspeed
@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_deepspeed_goes_on_from_what_was_converted(trained):
    """As it does from its own: with weights from a file, and as a copy of its own folder."""
    folder, stage, told = trained
    torch.save(told["weights"], folder / "weights.pt")
    convert.convert(folder / "u", folder / "c", to="luma", codec="fp32", overwrite=True)
    for name, model in (("copy", folder / "u"), ("fresh", folder / "weights.pt")):
        target = folder / name
        convert.convert(folder / "c", target, to="deepspeed-universal", model=model, overwrite=True)
    want, copied, fresh = (run(f"resume:{name}", stage, folder) for name in ("u", "copy", "fresh"))
    for got in (copied, fresh):
        assert same(got["weights"], told["weights"])
        assert same(got["after"], want["after"])
        assert not same(got["after"], told["weights"])
        for name, moments in told["state"].items():
            assert same(got["state"][name], moments)
    kept = ("lr", "betas", "eps", "weight_decay")
    for one, other in zip(want["groups"], copied["groups"], strict=True):
        assert [one[key] for key in kept] == [other[key] for key in kept]


@pytest.fixture
def state(tmp_path):
    """AdamW state by name with an option of its own, and the model's weights beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    groups = [
        {"params": [(f"{i}.weight", model[i].weight) for i in (0, 1)], "initial_lr": 0.5},
        {"params": [(f"{i}.bias", model[i].bias) for i in (0, 1)], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups)
    model(torch.randn(4, 5)).square().sum().backward()
    adamw.step()
    torch.save(adamw.state_dict(), tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model, adamw


def write(tmp_path, name, **options):
    return convert.convert(
        tmp_path / "a.pt",
        tmp_path / name,
        to="deepspeed-universal",
        **{"model": tmp_path / "weights.pt", **options},
    )


def test_a_universal_checkpoint_holds_all_of_the_state(tmp_path, state):
    model, adamw = state
    report = write(tmp_path, "u")
    files = [path for path in (tmp_path / "u").rglob("*") if path.is_file()]
    assert report.result_bytes == sum(path.stat().st_size for path in files)
    source = convert.open_source(tmp_path / "u")
    assert source.groups()[0]["initial_lr"] == 0.5
    assert [group["weight_decay"] for group in source.groups()] == [0.01, 0.0]
    for name, param in model.named_parameters():
        found = source.read(name)
        assert found.info.step == 1
        for moment in MOMENTS:
            assert torch.equal(getattr(found, moment), adamw.state[param][moment])
        weight = torch.load(tmp_path / "u" / "zero" / name / "fp32.pt", weights_only=True)["param"]
        assert torch.equal(weight, param)


def test_where_model_parallelism_cut_the_model_files_tell_the_shapes(tmp_path, state):
    write(tmp_path, "u")
    states = torch.load(tmp_path / "u" / "mp_rank_00_model_states.pt", weights_only=True)
    # What each of two ranks had; the files hold what was put together of both.
    halves = [{name: torch.Size([1]) for name in group} for group in states["param_shapes"]]
    for rank in range(2):
        name = f"mp_rank_{rank:02d}_model_states.pt"
        torch.save({**states, "param_shapes": halves}, tmp_path / "u" / name)
    source = convert.open_source(tmp_path / "u")
    model, adamw = state
    for name, param in model.named_parameters():
        assert torch.equal(source.read(name).exp_avg, adamw.state[param]["exp_avg"])
        assert source.read(name).info.shape == tuple(param.shape)


def test_a_copy_takes_weights_from_another(tmp_path, state):
    write(tmp_path, "u")
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        # As DeepSpeed's own optimizers count.
        torch.save(1, tmp_path / "u" / "zero" / name / "step.pt")
    write(tmp_path, "v", model=tmp_path / "u")
    step = torch.load(tmp_path / "v" / "zero" / "1.bias" / "step.pt", weights_only=True)
    assert step == 1
    assert isinstance(step, int)
    one, other = (
        torch.load(tmp_path / name / "zero" / "1.bias" / "fp32.pt", weights_only=True)
        for name in ("u", "v")
    )
    assert torch.equal(one["param"], other["param"])
    assert convert.open_source(tmp_path / "v").read("0.weight").info.step == 1


def test_weights_are_needed_and_must_fit(tmp_path, state):
    with pytest.raises(ConfigurationError, match="needs model="):
        write(tmp_path, "u", model=None)
    with pytest.raises(CheckpointNotFoundError, match="no model here"):
        write(tmp_path, "u", model=tmp_path / "nowhere")
    torch.save({"0.weight": torch.ones(3, 5)}, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=r"has no '1\.weight'"):
        write(tmp_path, "u")
    torch.save({"0.weight": torch.ones(5, 3)}, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match=r"'0.weight' has shape \[5, 3\]"):
        write(tmp_path, "u")
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "weights.pt"}


def test_state_that_deepspeed_would_not_load_is_refused(tmp_path, state):
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["state"][1]["step"] = torch.tensor(7.0)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="group 0 have the steps 1, 7"):
        write(tmp_path, "u")


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_one(tmp_path, state):
    write(tmp_path, "u")
    with pytest.raises(CheckpointExistsError, match="there already"):
        write(tmp_path, "u")
    write(tmp_path, "u", overwrite=True)
    convert.convert(tmp_path / "u", tmp_path / "c", to="luma")
    assert checkpoint.verify(tmp_path / "c").ok
    (tmp_path / "u" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointExistsError, match="other files"):
        write(tmp_path, "u", overwrite=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda u: (u / "zero/1.bias/exp_avg.pt").unlink(), "there is no such file"),
        (lambda u: (u / "zero/1.bias/step.pt").write_bytes(b"PK"), "damaged"),
        (lambda u: shutil.rmtree(u / "zero/1.bias"), "no step for it|there is no such file"),
        (lambda u: (u / "mp_rank_00_model_states.pt").write_bytes(b""), "damaged"),
        (lambda u: torch.save({}, u / "mp_rank_00_model_states.pt"), "no shapes"),
        (lambda u: torch.save([], u / "zero/optimizer_state.pt"), "is not a dict"),
        (lambda u: torch.save({}, u / "zero/optimizer_state.pt"), "no groups"),
        (lambda u: torch.save(torch.ones(3), u / "zero/0.bias/exp_avg_sq.pt"), None),
        (lambda u: torch.save(torch.ones(4), u / "zero/0.bias/exp_avg_sq.pt"), "4 values for a"),
        (lambda u: torch.save("x", u / "zero/0.bias/exp_avg_sq.pt"), "must be a dense float"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, state, damage, message):
    write(tmp_path, "u")
    damage(tmp_path / "u")
    if message is None:
        assert torch.equal(
            convert.open_source(tmp_path / "u").read("0.bias").exp_avg_sq, torch.ones(3)
        )
        return
    with pytest.raises((ConversionError, CheckpointNotFoundError), match=message):
        convert.open_source(tmp_path / "u").read("0.bias")
