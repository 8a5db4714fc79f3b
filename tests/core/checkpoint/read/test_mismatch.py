"""State that does not fit is refused by name, and nothing is changed."""

import re

import pytest
import torch
from torch import nn

from luma_core import checkpoint
from luma_core.errors import ConfigurationError, StateMismatchError
from luma_core.optim import LUMA


@pytest.fixture
def saved(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer, model=run.model)
    return tmp_path


def _model(middle=40, out=6, layers=3, dtype=torch.float32):
    parts = [nn.Linear(48, middle), nn.LayerNorm(middle), nn.Linear(middle, out), nn.Linear(2, 2)]
    return nn.Sequential(*parts[:layers]).to(dtype)


@pytest.mark.parametrize(
    ("model", "named", "said"),
    [
        (_model(layers=4), True, "missing from the checkpoint '3.bias', '3.weight'"),
        (_model(layers=2), True, "unexpected in it '2.bias', '2.weight'"),
        (_model(out=7), True, "'2.weight': the checkpoint has shape [6, 40]; "),
        (_model(layers=4), False, "state of 6 parameters; the optimizer has 8"),
        (_model(out=7), False, "'param.4': the checkpoint has shape [6, 40]"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_told_where(saved, model, named, said):
    optimizer = LUMA(model.named_parameters() if named else model.parameters())
    with pytest.raises(StateMismatchError, match=re.escape(said)):
        checkpoint.load(saved, optimizer=optimizer)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_model(layers=4), "missing from the checkpoint '3.bias', '3.weight'"),
        (_model(layers=2), "unexpected in it '2.bias', '2.weight'"),
        (_model(out=7), "'2.weight': the checkpoint has F32 [6, 40]; the model has F32 [7, 40]"),
        (_model(dtype=torch.bfloat16), "the model has BF16"),
    ],
)
def test_a_model_that_does_not_fit_is_told_where_and_the_optimizer_is_untouched(
    saved, new_run, same, model, said
):
    before = [p.detach().clone() for p in model.parameters()]
    run = new_run(steps=1)
    untouched = run.snapshot()
    with pytest.raises(StateMismatchError, match=re.escape(said)):
        checkpoint.load(saved, optimizer=run.optimizer, model=model)
    assert same(run.snapshot(), untouched)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_cannot_be_loaded_from_a_checkpoint_without_weights(tmp_path, new_run):
    run = new_run()
    checkpoint.save(tmp_path, optimizer=run.optimizer)
    with pytest.raises(StateMismatchError, match="no model weights"):
        checkpoint.load(tmp_path, model=run.model)


def test_state_of_another_algorithm_is_refused(saved, new_run, edit_manifest):
    edit_manifest(saved, lambda body: body.update(algorithm="other"))
    with pytest.raises(StateMismatchError, match="'other' cannot be loaded into 'luma'"):
        checkpoint.load(saved, optimizer=new_run().optimizer)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"max_shard_bytes": 0},
        {"max_shard_bytes": 1.5},
        {"overwrite": "no"},
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, new_run, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        checkpoint.save(tmp_path, optimizer=new_run(steps=0).optimizer, **options)
    assert not list(tmp_path.iterdir())


def test_a_state_dict_with_what_cannot_be_kept_is_refused(tmp_path, new_run):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": object()}

    with pytest.raises(ConfigurationError, match=r"model.state_dict\(\)\['_extra_state'\]\['a'\]"):
        checkpoint.save(tmp_path, optimizer=new_run(steps=0).optimizer, model=Odd(2, 2))


def test_tensors_that_are_not_as_their_codec_says_are_refused(tmp_path, new_run):
    run = new_run()
    state = run.optimizer.state[run.model[0].weight]
    state["exp_avg.codes"] = state["exp_avg.codes"][:-1]
    with pytest.raises(StateMismatchError, match=r"0.weight/exp_avg.codes.*\[40, 48\]"):
        checkpoint.save(tmp_path, optimizer=run.optimizer)
    assert not list(tmp_path.iterdir())
