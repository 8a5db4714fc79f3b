"""State of other optimizers, this project's and PyTorch's, is coded anew or refused."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luma_core import LUMA, AdamMini, TurboAdam
from luma_core.errors import ConversionError, LumaError, StateMismatchError

from .loading import (
    OPTIMIZERS,
    Optimizer,
    assert_same_state,
    parameters,
    rates,
    stepped,
    take_steps,
    unnamed,
)


@pytest.mark.parametrize("there", OPTIMIZERS)
@pytest.mark.parametrize("here", OPTIMIZERS)
@pytest.mark.parametrize("way", ["state_dict", "states"])
def test_state_of_another_optimizer_is_coded_in_this_ones_codecs(
    here: Optimizer, there: Optimizer, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    source: Any = stepped(there, parameters(), lr=0.1, seed=1)
    source.param_groups[0]["initial_lr"] = 0.1
    optimizer: Any = here(parameters(), seed=2)  # type: ignore[call-arg]
    built = optimizer.group_options()[0]
    if way == "state_dict":
        optimizer.load_state_dict(source.state_dict())
    else:
        optimizer.load_parameter_states(source.group_options(), source.parameter_states())
    group = optimizer.group_options()[0]
    assert (group["lr"], group["initial_lr"]) == (0.1, 0.1)
    assert group["codecs"] == built["codecs"]
    assert len(caplog.records) == (here is not there)
    for want, got in zip(source.parameter_states(), optimizer.parameter_states(), strict=True):
        assert (want.step, want.noise_key) == (got.step, got.noise_key)
        if want.codecs == got.codecs:
            assert all(torch.equal(want.fields[key], got.fields[key]) for key in want.fields)
        else:
            coded = got.codecs["exp_avg"].encode_tensor(want.decode("exp_avg"))
            assert all(torch.equal(coded[k], got.fields[f"exp_avg.{k}"]) for k in coded)
    take_steps(optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("named", [True, False])
def test_adamws_state_dict_is_imported_and_that_is_logged_once(
    kind: Optimizer, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if kind is AdamMini and not named:
        pytest.skip("needs names")
    params: Callable[[], Any] = parameters if named else unnamed
    adamw = stepped(torch.optim.AdamW, params(), lr=3e-3, weight_decay=0.2)
    adamw.param_groups[0]["initial_lr"] = 1e-2
    optimizer, imported = kind(params(), seed=1), kind(params(), seed=1)  # type: ignore[call-arg]
    optimizer.load_state_dict(adamw.state_dict())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "state of 'torch.optim.AdamW' is loaded into" in caplog.text
    imported.import_adamw_state(adamw.state_dict())  # type: ignore[attr-defined]
    assert len(caplog.records) == 1
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["initial_lr"]) == (3e-3, 0.2, 1e-2)
    for x, y in zip(optimizer.state.values(), imported.state.values(), strict=True):
        assert_same_state(x, y)


@pytest.mark.parametrize("load", ["load_state_dict", "import_adamw_state"])
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (torch.optim.Adam, {"weight_decay": 0.1}, "Adam with weight_decay=0.1 added to the grad"),
        (torch.optim.AdamW, {"amsgrad": True}, "amsgrad=True"),
        (torch.optim.NAdam, {}, "mu_product"),
        (torch.optim.SGD, {"momentum": 0.9}, "saved parameter group 0 has no 'codecs'|no 'betas'"),
    ],
)
def test_state_that_cannot_be_continued_is_refused_and_nothing_changes(
    kind: Any, options: dict[str, Any], message: str, load: str
) -> None:
    source = stepped(kind, unnamed(), lr=0.1, **options)
    optimizer = stepped(LUMA, unnamed(), lr=torch.tensor(0.5))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(LumaError, match=message) as caught:
        getattr(optimizer, load)(source.state_dict())
    assert isinstance(caught.value, ConversionError | StateMismatchError)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, entry in before["state"].items():
        assert_same_state(entry, after["state"][index])


def test_adams_state_without_weight_decay_is_adamws() -> None:
    optimizer = LUMA(unnamed(), weight_decay=0.3)
    optimizer.load_state_dict(stepped(torch.optim.Adam, unnamed(), lr=0.1).state_dict())
    assert (rates(optimizer), optimizer.param_groups[0]["weight_decay"]) == ([0.1], 0)


def test_codecs_that_stay_those_of_the_saved_state_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = stepped(TurboAdam, parameters(), preset="8bit")
    optimizer = TurboAdam(parameters(), m_bits=4)
    optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["codecs"] == source.param_groups[0]["codecs"]
    assert "keeps the codecs that it was saved with" in caplog.text
