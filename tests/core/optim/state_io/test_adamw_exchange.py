"""Exchange with torch.optim.AdamW in memory: values survive, and what does not fit is refused."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.errors import ConversionError, StateMismatchError

Make = Callable[..., nn.Module]
Train = Callable[..., float]


def test_export_is_what_torch_adamw_loads(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), lr=3e-3, weight_decay=0.1)
    train(model, optimizer, 5)
    twin = copy.deepcopy(model)
    adamw = torch.optim.AdamW(twin.named_parameters())
    reference = adamw.state_dict()["param_groups"][0].keys()
    exported = optimizer.export_adamw_state()
    assert exported["param_groups"][0].keys() == reference
    adamw.load_state_dict(exported)
    assert adamw.param_groups[0]["lr"] == 3e-3
    train(model, optimizer, 3, start=5)
    train(twin, adamw, 3, start=5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("block_size", [128, None])
def test_export_then_import_restores_every_value(
    make_model: Make, train: Train, block_size: int | None
) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), block_size=block_size, seed=1, eps=1e-7)
    train(model, optimizer, 5)
    other = LUMA(copy.deepcopy(model).named_parameters(), block_size=block_size, seed=2)
    exported = optimizer.export_adamw_state()
    other.import_adamw_state(exported)
    assert other.param_groups[0]["eps"] == 1e-7
    again = other.export_adamw_state()
    for index, entry in exported["state"].items():
        assert all(torch.equal(again["state"][index][key], entry[key]) for key in entry)


def test_import_from_trained_adamw_goes_on_like_it(make_model: Make, train: Train) -> None:
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, adamw, 20)
    twin = copy.deepcopy(model)
    luma = LUMA(twin.parameters(), seed=0)
    luma.import_adamw_state(adamw.state_dict())
    ours, theirs = train(twin, luma, 10, start=20), train(model, adamw, 10, start=20)
    assert luma.param_groups[0]["lr"] == 3e-3
    assert int(luma.state[twin.gain]["step"]) == 30  # type: ignore[index]
    assert ours == pytest.approx(theirs, rel=0.005)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda sd: sd["param_groups"][0].update(amsgrad=True), ConversionError, "amsgrad=True"),
        (lambda sd: sd["param_groups"][0].pop("betas"), StateMismatchError, "group 0 of the AdamW"),
        (
            lambda sd: sd["state"][0].pop("exp_avg_sq"),
            ConversionError,
            "'param.0' has 'exp_avg', 'step'; AdamW's state is 'exp_avg', 'exp_avg_sq', 'step'",
        ),
        (
            lambda sd: sd["state"][4].update(exp_avg=torch.zeros(2, 3)),
            ConversionError,
            "exp_avg has shape [2, 3], exp_avg_sq [6]; they must be equal",
        ),
        (
            lambda sd: sd["state"][4].update(
                exp_avg=torch.zeros(2, 3), exp_avg_sq=torch.zeros(2, 3)
            ),
            StateMismatchError,
            "exp_avg has shape [2, 3]; the parameter has [6]",
        ),
        (lambda sd: sd["param_groups"].append({}), StateMismatchError, "2 parameter groups"),
        (lambda sd: sd["param_groups"][0]["params"].pop(), StateMismatchError, "7 parameters"),
        (lambda sd: sd.pop("state"), StateMismatchError, "'state' of the AdamW state is missing"),
        (lambda sd: sd.pop("param_groups"), StateMismatchError, "'param_groups' of the AdamW"),
        (
            lambda sd: sd["state"].update({0: 3}),
            StateMismatchError,
            "'param.0': the state is a int",
        ),
        (
            lambda sd: sd["state"][4].update(exp_avg=[0.0] * 6),
            ConversionError,
            "'param.4': exp_avg is list; it must be a dense float tensor",
        ),
        (
            lambda sd: sd["state"][4]["exp_avg"].fill_(math.nan),
            ConversionError,
            "'param.4': exp_avg holds 6 values that are NaN or infinite",
        ),
        (
            lambda sd: sd["state"][4]["exp_avg_sq"][:2].fill_(math.inf),
            ConversionError,
            "'param.4': exp_avg_sq holds 2 values that are NaN or infinite",
        ),
        (
            lambda sd: sd["state"][4]["exp_avg_sq"].fill_(-1.0),
            ConversionError,
            "'param.4': exp_avg_sq holds 6 negative values",
        ),
        (
            lambda sd: sd["state"][4]["step"].fill_(-1.0),
            ConversionError,
            "'param.4': step is -1.0; it must be a whole number",
        ),
        (
            lambda sd: sd["state"][4].update(step=math.nan),
            ConversionError,
            "'param.4': step is nan",
        ),
    ],
)
def test_import_of_unfit_adamw_state_changes_nothing(
    make_model: Make,
    train: Train,
    change: Callable[[dict[str, Any]], object],
    kind: type[Exception],
    message: str,
) -> None:
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters())
    train(model, adamw, 1)
    state = adamw.state_dict()
    change(state)
    optimizer = LUMA(model.parameters())
    with pytest.raises(kind) as caught:
        optimizer.import_adamw_state(state)
    assert message in str(caught.value)
    assert not optimizer.state


def _named_adamw(model: nn.Module, train: Train) -> torch.optim.AdamW:
    adamw = torch.optim.AdamW(model.named_parameters())
    train(model, adamw, 2)
    return adamw


def _equal_to_nearest(luma: LUMA, adamw: torch.optim.AdamW, model: nn.Module) -> None:
    for name, param in model.named_parameters():
        want = adamw.state[param]["exp_avg"]
        got = luma.parameter_state(name).decode("exp_avg")
        assert torch.allclose(got, want, rtol=2e-3, atol=1e-6)
        assert float(want.abs().max()) > 0


def test_import_finds_parameters_by_name_where_both_have_names(
    make_model: Make, train: Train
) -> None:
    model = make_model()
    adamw = _named_adamw(model, train)
    luma = LUMA(list(reversed(list(model.named_parameters()))))
    luma.import_adamw_state(adamw.state_dict())
    _equal_to_nearest(luma, adamw, model)


def test_import_finds_parameters_by_the_keys_of_a_full_state_dict(
    make_model: Make, train: Train
) -> None:
    model = make_model()
    adamw = _named_adamw(model, train)
    saved = adamw.state_dict()
    names = saved["param_groups"][0].pop("param_names")
    saved["state"] = {names[key]: entry for key, entry in saved["state"].items()}
    saved["param_groups"][0]["params"] = list(reversed(names))
    luma = LUMA(model.named_parameters())
    luma.import_adamw_state(saved)
    _equal_to_nearest(luma, adamw, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.__setitem__(0, "other"), "unexpected 'other'"),
        (lambda names: names.__setitem__(0, names[1]), "other names than the optimizer's"),
        (lambda names: names.pop(), "must be one name for each"),
    ],
)
def test_import_of_state_with_other_names_changes_nothing(
    make_model: Make, train: Train, change: Callable[[list[str]], object], message: str
) -> None:
    model = make_model()
    saved = _named_adamw(model, train).state_dict()
    change(saved["param_groups"][0]["param_names"])
    luma = LUMA(model.named_parameters())
    with pytest.raises(StateMismatchError, match=message):
        luma.import_adamw_state(saved)
    assert not luma.state
