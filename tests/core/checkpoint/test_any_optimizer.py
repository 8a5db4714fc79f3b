"""Any optimizer of PyTorch's kind is saved and loaded exactly, with all that checkpoints can do."""

import json

import pytest
import torch
from torch import nn, optim

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.format import MANIFEST_NAME
from luma_core.checkpoint.format.manifest import GENERIC_VERSION, VERSION
from luma_core.errors import ConfigurationError, StateMismatchError, UnsupportedVersionError
from luma_core.stats import compute, diff

KINDS = {
    "AdamW": {},
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9},
    "Adagrad": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adafactor": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adadelta": {},
    "ASGD": {},
    "Rprop": {},
    "LBFGS": {"history_size": 4},
}


def _model(seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).to(dtype)


def _train(model, *optimizers, steps=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 16, generator=generator).to(next(model.parameters()).dtype)

        def closure(x=x):
            model.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for optimizer in optimizers:
            optimizer.step(closure)


def _same(a, b):
    """Compare nested values of state, dtypes and devices included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_exactly(kind, tmp_path):
    model = _model()
    optimizer = getattr(optim, kind)(model.parameters(), lr=0.01, **KINDS[kind])
    _train(model, optimizer)
    manifest = checkpoint.save(tmp_path, optimizer=optimizer, model=model)
    assert manifest.algorithm == f"torch.{kind}"
    assert manifest.version == GENERIC_VERSION
    assert not checkpoint.verify(tmp_path).problems
    again = _model(2)
    loaded = getattr(optim, kind)(again.parameters(), lr=0.5)
    checkpoint.load(tmp_path, optimizer=loaded, model=again)
    assert _same(loaded.state_dict(), optimizer.state_dict())
    _train(model, optimizer, seed=3)
    _train(again, loaded, seed=3)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_muon_beside_adamw_in_a_list(tmp_path):
    def build(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        return [optim.Muon(matrices, lr=0.01), optim.AdamW(vectors, lr=0.02)]

    model, again = _model(), _model(2)
    some, loaded = build(model), build(again)
    _train(model, *some)
    manifest = checkpoint.save(tmp_path, optimizer=some, model=model)
    assert manifest.algorithm == "0: torch.Muon + 1: torch.AdamW"
    checkpoint.load(tmp_path, optimizer=loaded, model=again)
    for one, other in zip(some, loaded, strict=True):
        assert _same(one.state_dict(), other.state_dict())
    with pytest.raises(StateMismatchError, match="cannot be loaded into"):
        checkpoint.load(tmp_path, optimizer=loaded[::-1], model=again)


def test_the_optimizers_of_two_models_in_a_dict(tmp_path):
    models = [_model(seed) for seed in range(4)]
    g, d, g2, d2 = (optim.Adam(model.named_parameters()) for model in models)
    _train(models[0], g)
    _train(models[1], d, steps=3)
    manifest = checkpoint.save(tmp_path, optimizer={"g": g, "d": d})
    assert manifest.parameters[0].name == "d.0.weight"
    assert manifest.summary.step == 3
    checkpoint.load(tmp_path, optimizer={"d": d2, "g": g2})
    assert _same(g2.state_dict(), g.state_dict())
    assert _same(d2.state_dict(), d.state_dict())


class _Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


class DeepSpeedZeroOptimizer(_Wrapper):
    pass


def test_wrapped_ones_are_unwrapped(tmp_path):
    model, again = _model(), _model(2)
    optimizer, loaded = optim.AdamW(model.parameters()), optim.AdamW(again.parameters())
    _train(model, optimizer)
    checkpoint.save(tmp_path, optimizer=_Wrapper(_Wrapper(optimizer)))
    checkpoint.load(tmp_path, optimizer=_Wrapper(loaded))
    assert _same(loaded.state_dict(), optimizer.state_dict())
    with pytest.raises(ConfigurationError, match="DeepSpeedZeroOptimizer"):
        checkpoint.save(tmp_path / "no", optimizer=DeepSpeedZeroOptimizer(optimizer))


def test_dtypes_of_state_stay_whatever_the_parameters_is(tmp_path):
    model = _model(dtype=torch.bfloat16)
    optimizer = optim.AdamW(model.parameters())
    _train(model, optimizer)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-6
        state["count.of/steps"] = 7
        state["seen"] = {"at": (1, 2.5), "mask": torch.tensor([True, False])}
    checkpoint.save(tmp_path, optimizer=optimizer)
    loaded = optim.AdamW(_model(2, torch.bfloat16).parameters())
    checkpoint.load(tmp_path, optimizer=loaded)
    assert _same(loaded.state_dict(), optimizer.state_dict())


def test_options_keep_their_kinds(tmp_path):
    model, again = _model(), _model(2)
    optimizer = optim.AdamW(model.parameters(), lr=torch.tensor(0.25), foreach=False)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    checkpoint.save(tmp_path, optimizer=optimizer)
    loaded = optim.AdamW(again.parameters(), lr=torch.tensor(0.1), foreach=False)
    checkpoint.load(tmp_path, optimizer=loaded)
    assert _same(loaded.param_groups[0]["lr"], torch.tensor(0.25))
    assert loaded.param_groups[0]["initial_lr"] == 0.5
    assert loaded.param_groups[0]["betas"] == (0.9, 0.999)


def test_frozen_and_unused_parameters_have_no_state(tmp_path):
    model, again = _model(), _model(2)
    model[0].weight.requires_grad_(False)
    optimizer, loaded = optim.AdamW(model.parameters()), optim.AdamW(again.parameters())
    _train(model, optimizer)
    _train(again, loaded)
    checkpoint.save(tmp_path, optimizer=optimizer, model=model)
    report = checkpoint.load(tmp_path, optimizer=loaded, model=again).optimizer
    assert report.missing == ("0.weight",)
    assert _same(loaded.state_dict()["state"], optimizer.state_dict()["state"])


def test_what_does_not_fit_is_refused_and_can_be_left_out(tmp_path):
    model, other = _model(), nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 5))
    optimizer = optim.AdamW(model.named_parameters())
    _train(model, optimizer)
    checkpoint.save(tmp_path, optimizer=optimizer)
    loaded = optim.AdamW(other.named_parameters())
    with pytest.raises(
        StateMismatchError, match=r"'1\.weight': the checkpoint has shape \[4, 32\]"
    ):
        checkpoint.load(tmp_path, optimizer=loaded)
    assert not loaded.state
    report = checkpoint.load(tmp_path, optimizer=loaded, strict=False).optimizer
    assert report.new == report.left_out == ("1.weight", "1.bias")
    assert _same(loaded.state[other[0].weight], optimizer.state[model[0].weight])
    for wrong in (optim.Adam(model.parameters()), LUMA(model.named_parameters())):
        with pytest.raises(StateMismatchError):
            checkpoint.load(tmp_path, optimizer=wrong)


@pytest.mark.parametrize("value", [lambda: 1, torch.zeros(2, dtype=torch.complex64), object()])
def test_values_that_cannot_be_kept_are_named(value, tmp_path):
    model = _model()
    optimizer = optim.AdamW(model.parameters())
    _train(model, optimizer)
    optimizer.state[model[1].bias]["odd"] = value
    with pytest.raises(ConfigurationError, match=r"state of '1\.bias': \['odd'\]"):
        checkpoint.save(tmp_path / "no", optimizer=optimizer, model=model)
    assert not (tmp_path / "no").exists()


def test_saves_behind_training_have_the_state_of_their_call(tmp_path):
    model = _model()
    optimizer = optim.AdamW(model.parameters())
    checkpoint.prepare(optimizer=optimizer, model=model)
    _train(model, optimizer)
    expected = [state["exp_avg"].clone() for state in optimizer.state.values()]
    handle = checkpoint.async_save(tmp_path, optimizer=optimizer, model=model)
    _train(model, optimizer)
    handle.result()
    loaded = optim.AdamW(_model(2).parameters())
    checkpoint.load(tmp_path, optimizer=loaded)
    assert _same([state["exp_avg"] for state in loaded.state.values()], expected)


def test_a_manager_saves_differences(tmp_path):
    model = _model()
    optimizer = optim.AdamW(model.named_parameters())
    manager = checkpoint.CheckpointManager(tmp_path, keep_last=2, max_chain=3)
    for step in range(4):
        _train(model, optimizer, steps=1)
        manager.save(step, optimizer=optimizer, model=model)
    assert manager.open(2).manifest.version == GENERIC_VERSION
    loaded = optim.AdamW(_model(2).named_parameters())
    manager.load(optimizer=loaded)
    assert _same(loaded.state_dict(), optimizer.state_dict())
    assert not checkpoint.verify(manager.store(3)).problems


def test_statistics_of_what_has_the_parameters_shape(tmp_path):
    model = _model()
    optimizer = optim.Adafactor(model.parameters())
    _train(model, optimizer)
    checkpoint.save(tmp_path / "a", optimizer=optimizer, model=model)
    with checkpoint.open(tmp_path / "a") as opened:
        found = compute(opened)
        bias = next(one for one in found.parameters if one.name == "1.bias")
        assert [moment.moment for moment in bias.moments] == ["variance"]
        assert found.total.state_bytes == sum(
            value.nbytes for state in optimizer.state.values() for value in state.values()
        )
        assert diff(opened, opened).identical


def test_only_such_checkpoints_need_the_new_version(tmp_path, monkeypatch):
    model = _model()
    assert checkpoint.save(tmp_path / "l", optimizer=LUMA(model.parameters())).version == VERSION
    optimizer = optim.AdamW(model.parameters())
    _train(model, optimizer)
    checkpoint.save(tmp_path / "a", optimizer=optimizer)
    text = json.loads((tmp_path / "a" / MANIFEST_NAME).read_text())
    assert text["manifest"]["parameters"][0]["codecs"]["exp_avg"] == {
        "name": "raw",
        "dtype": "float32",
    }
    monkeypatch.setattr("luma_core.checkpoint.format.parse.NEWEST_VERSION", GENERIC_VERSION - 1)
    with pytest.raises(UnsupportedVersionError, match="format version 6"):
        checkpoint.open(tmp_path / "a")
