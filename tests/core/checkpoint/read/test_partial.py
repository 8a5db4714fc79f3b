"""Checkpoints under other names, of other optimizers, and of a part of what is there."""

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, TurboAdam, checkpoint
from luma_core.errors import StateMismatchError


def model(out=6, extra=False):
    torch.manual_seed(0)
    parts = [nn.Linear(48, 40), nn.LayerNorm(40), nn.Linear(40, out)]
    return nn.Sequential(*parts, *[nn.Linear(2, 2)] * extra)


class Wrapped(nn.Module):
    """What `torch.compile` and DDP make of names."""

    def __init__(self, name, inner):
        super().__init__()
        self.add_module(name, inner)


def trained(run, kind=LUMA, **options):
    optimizer = kind(run.named_parameters(), lr=0.1, seed=0, **options)
    for param in run.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("wrappers", [["_orig_mod"], ["module", "_orig_mod"]])
@pytest.mark.parametrize("saved_wrapped", [True, False])
@pytest.mark.parametrize("manager", [True, False])
def test_names_of_state_and_weights_match_under_wrappers(
    tmp_path, wrappers, saved_wrapped, manager
):
    def wrapped(inner):
        for name in wrappers:
            inner = Wrapped(name, inner)
        return inner

    saved, own = model(), model()
    there, here = (wrapped(saved), own) if saved_wrapped else (saved, wrapped(own))
    optimizer = trained(there)
    other = LUMA(here.named_parameters())
    with torch.no_grad():
        own[0].weight.zero_()
    if manager:
        steps = checkpoint.CheckpointManager(tmp_path)
        steps.save(1, optimizer=optimizer, model=there)
        steps.load(optimizer=other, model=here)
    else:
        checkpoint.save(tmp_path, optimizer=optimizer, model=there)
        checkpoint.load(tmp_path, optimizer=other, model=here)
    assert all(map(torch.equal, own.parameters(), saved.parameters()))
    assert other.parameter_names() == [name for name, _ in here.named_parameters()]
    for want, got in zip(optimizer.parameter_states(), other.parameter_states(), strict=True):
        assert want.noise_key == got.noise_key
        assert all(torch.equal(want.fields[key], got.fields[key]) for key in want.fields)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("offload", [None, "disk"])
def test_what_there_is_is_loaded_and_the_rest_is_reported(tmp_path, compression, offload):
    saved = model()
    optimizer = trained(saved)
    checkpoint.save(tmp_path / "c", optimizer=optimizer, model=saved, compression=compression)
    own = model(out=7, extra=True)
    head = own[2].weight.detach().clone()
    options = {"offload": offload, "offload_directory": tmp_path / "s"} if offload else {}
    other = LUMA(own.named_parameters(), **options)
    with pytest.raises(StateMismatchError):
        checkpoint.load(tmp_path / "c", optimizer=other, model=own)
    loaded = checkpoint.load(tmp_path / "c", optimizer=other, model=own, strict=False)
    new = ("2.weight", "2.bias", "3.weight", "3.bias")
    assert (loaded.optimizer.new, loaded.model.new) == (new, new)
    assert loaded.optimizer.left_out == loaded.model.left_out == ("2.weight", "2.bias")
    assert torch.equal(own[0].weight, saved[0].weight)
    assert torch.equal(own[2].weight, head)
    assert other.param_groups[0]["lr"] == 0.1
    want, got = optimizer.parameter_state("0.weight"), other.parameter_state("0.weight")
    assert all(torch.equal(want.fields[key], got.fields[key]) for key in want.fields)
    assert not other.parameter_state("2.weight").codecs
    for param in own.parameters():
        param.grad = torch.ones_like(param)
    other.step()


@pytest.mark.parametrize("kind", [TurboAdam, LAMB])
@pytest.mark.parametrize("offload", [None, "disk"])
def test_a_checkpoint_of_another_optimizer_is_coded_anew(tmp_path, kind, offload, caplog):
    saved, own = model(), model()
    optimizer = trained(saved)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    options = {"offload": offload, "offload_directory": tmp_path / "s"} if offload else {}
    other = kind(own.named_parameters(), **options)
    codecs = other.group_options()[0]["codecs"]
    checkpoint.load(tmp_path / "c", optimizer=other)
    assert other.group_options()[0]["codecs"] == codecs
    assert caplog.text.count("state of 'luma' is loaded into") == 1
    twin = kind(model().named_parameters())
    twin.load_state_dict(optimizer.state_dict())
    for want, got in zip(twin.parameter_states(), other.parameter_states(), strict=True):
        assert (want.step, want.noise_key, want.codecs) == (got.step, got.noise_key, got.codecs)
        assert all(torch.equal(want.fields[key], got.fields[key]) for key in want.fields)


def test_state_without_names_is_refused_by_groups_of_other_sizes(tmp_path):
    checkpoint.save(tmp_path, optimizer=LUMA(model().parameters()))
    params = list(model().parameters())
    other = LUMA([{"params": params[2:]}, {"params": params[:2]}])
    for strict in (True, False):
        with pytest.raises(StateMismatchError, match=r"\[6\] were saved, \[4, 2\] are here"):
            checkpoint.load(tmp_path, optimizer=other, strict=strict)
