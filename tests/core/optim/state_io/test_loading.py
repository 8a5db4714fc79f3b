"""State saved elsewhere: under other names, in other groups, in other codecs, or of a part."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, AdamW, TurboAdam
from luma_core.errors import StateMismatchError
from luma_core.optim.base import CompressedOptimizer

from .loading import (
    OPTIMIZERS,
    SIZES,
    Optimizer,
    assert_same_state,
    by_name,
    parameters,
    rates,
    stepped,
    take_steps,
    unnamed,
)

# Tensors as options


def two_groups(kind: Optimizer = LUMA, lr: Any = 1e-3, **options: Any) -> CompressedOptimizer:
    weight, bias = parameters()[:2]
    return kind([{"params": [weight]}, {"params": [bias]}], lr=lr, **options)  # type: ignore[call-arg]


def with_rates(*values: float) -> dict[str, Any]:
    optimizer = two_groups()
    for group, value in zip(optimizer.param_groups, values, strict=True):
        group["lr"] = value
    return optimizer.state_dict()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "made",
    [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],  # noqa: S301
    ids=["built", "copied", "pickled"],
)
def test_groups_that_share_a_tensor_as_rate_are_loaded_each_for_itself(
    made: Callable[[Any], Any], capturable: bool
) -> None:
    rate = torch.tensor(0.5)
    others = [two_groups(LAMB, rate), torch.optim.AdamW(unnamed(), lr=rate)]
    built = two_groups(lr=rate, capturable=capturable)
    optimizer = made(built)
    optimizer.load_state_dict(with_rates(0.1, 0.3))
    assert rates(optimizer) == [0.1, 0.3]
    assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
    assert float(rate) == float(optimizer.defaults["lr"]) == 0.5
    assert {value for other in others for value in rates(other)} == {0.5}
    if optimizer is not built:
        assert rates(built) == [0.5, 0.5]


def test_rates_from_one_tensor_that_was_saved_are_independent() -> None:
    saved = two_groups(lr=torch.tensor(0.5)).state_dict()
    optimizer = two_groups()
    optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert rates(optimizer) == [0.25, 0.5]
    assert float(saved["param_groups"][0]["lr"]) == 0.5


def test_a_tensor_that_only_a_capturable_group_holds_stays_the_one_that_graphs_read() -> None:
    own = torch.tensor(0.5)
    saved = LUMA(parameters(), lr=0.1, capturable=True).state_dict()
    optimizer = LUMA([{"params": parameters(), "lr": own}], capturable=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] is own
    assert rates(optimizer) == [0.1]
    other = TurboAdam([{"params": parameters(), "lr": own}])
    saved["param_groups"][0]["lr"] = 0.2
    optimizer.load_state_dict(saved)
    assert (rates(optimizer), rates(other)) == ([0.2], [0.1])


# Names


@pytest.mark.parametrize("saved", ["", "_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("own", ["", "_orig_mod.module."])
def test_state_is_found_under_any_wrappers_and_goes_on_bit_for_bit(own: str, saved: str) -> None:
    whole = stepped(LUMA, parameters(prefix=saved), seed=1)
    resumed = LUMA(parameters(prefix=own), seed=2)
    for (_, param, _), (_, other, _) in zip(
        resumed.parameters_by_name(), whole.parameters_by_name(), strict=True
    ):
        param.data.copy_(other.data)
    resumed.load_state_dict(whole.state_dict())
    for optimizer in (whole, resumed):
        take_steps(optimizer, seed=5)
    for x, y in zip(whole.parameter_states(), resumed.parameter_states(), strict=True):
        assert (x.noise_key, x.step) == (y.noise_key, 4)
        assert all(torch.equal(x.fields[key], y.fields[key]) for key in x.fields)


@pytest.mark.parametrize("there", ["named", "unnamed", "wrapped"])
@pytest.mark.parametrize("here", ["named", "unnamed"])
@pytest.mark.parametrize("kind", [LUMA, torch.optim.AdamW])
def test_names_are_adopted_as_adamw_adopts_them(there: str, here: str, kind: Any) -> None:
    given: dict[str, Callable[[], Any]] = {
        "named": parameters,
        "unnamed": unnamed,
        "wrapped": lambda: parameters(prefix="module."),
    }
    adamw = torch.optim.AdamW(given[here]())
    adamw.load_state_dict(stepped(torch.optim.AdamW, given[there]()).state_dict())
    luma = LUMA(given[here]())
    luma.load_state_dict(stepped(kind, given[there]()).state_dict())
    assert luma.param_groups[0].get("param_names") == adamw.param_groups[0].get("param_names")
    assert luma.named == (here == "named" or there != "unnamed")
    take_steps(luma)


def test_names_in_another_order_find_their_own_state() -> None:
    saved = stepped(LUMA, parameters())
    other = LUMA(parameters()[::-1])
    other.load_state_dict(saved.state_dict())
    assert other.parameter_names() == saved.parameter_names()[::-1]
    for name, state in by_name(saved).items():
        assert_same_state(state, by_name(other)[name])


def test_names_that_wrappers_alone_tell_apart_are_refused() -> None:
    sizes = {"x.module.w": (8, 64), "x.w": (8, 64)}
    optimizer = LUMA(parameters({"module.x.w": (8, 64), "x.y": (8, 64)}))
    with pytest.raises(StateMismatchError, match="it is not known whose state is whose"):
        optimizer.load_state_dict(stepped(LUMA, parameters(sizes)).state_dict())
    assert not optimizer.state


def other_names(way: str) -> None:
    count = 8000
    own = LUMA([(f"a.{i}", nn.Parameter(torch.ones(1))) for i in range(count)])
    params = [(f"b.{i}", nn.Parameter(torch.ones(1))) for i in range(count)]
    if way == "adamw":
        own.import_adamw_state(torch.optim.AdamW(params).state_dict())
    elif way == "states":
        source = LUMA(params)
        own.load_parameter_states(source.group_options(), source.parameter_states())
    else:
        own.load_state_dict(LUMA(params).state_dict())


@pytest.mark.parametrize("way", ["state_dict", "states", "adamw"])
def test_a_mismatch_of_thousands_of_names_is_found_in_linear_work(way: str) -> None:
    """What is called grows with the number of names, not with its square."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    with pytest.raises(StateMismatchError, match="and 7997 more"):
        profile.runcall(other_names, way)
    assert pstats.Stats(profile).total_calls < 8000 * 400  # type: ignore[attr-defined]


# Groups


def regrouped(named: bool) -> LUMA:
    a, b = parameters()[:2], parameters()[2:]
    groups = [{"params": b, "lr": 1e-4, "eps": 1e-6}, {"params": a}]
    if not named:
        groups = [{**group, "params": [p for _, p in group["params"]]} for group in groups]  # type: ignore[union-attr, misc]
    return LUMA(groups, lr=1e-2)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["state_dict", "states", "adamw"])
def test_state_without_names_is_refused_by_groups_of_other_sizes(way: str) -> None:
    source = stepped(torch.optim.AdamW if way == "adamw" else LUMA, unnamed())
    optimizer = regrouped(named=False)
    if way == "states":
        groups, states = source.group_options(), source.parameter_states()
        load = partial(optimizer.load_parameter_states, groups, states)
    else:
        load = partial(optimizer.load_state_dict, source.state_dict())
    with pytest.raises(StateMismatchError, match="groups"):
        load()
    with pytest.raises(StateMismatchError, match=r"groups of the same sizes: \[4\].*\[2, 2\]"):
        optimizer.load_state_dict(source.state_dict(), strict=False)
    assert not optimizer.state


def test_groups_that_are_no_saved_group_keep_their_own_options(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = stepped(LUMA, parameters(), lr=0.5, block_size=64)
    optimizer = regrouped(named=True)
    optimizer.load_parameter_states(source.group_options(), source.parameter_states())
    assert rates(optimizer) == [1e-4, 1e-2]
    assert "parameter groups 0, 1 keep their own options" in caplog.text
    assert optimizer.param_groups[0]["codecs"]["exp_avg"]["block_size"] == 128
    for state in optimizer.parameter_states():
        want = source.parameter_state(state.name)
        torch.testing.assert_close(
            state.decode("exp_avg"), want.decode("exp_avg"), rtol=1e-3, atol=1e-6
        )
        assert (state.step, state.noise_key) == (2, want.noise_key)
    take_steps(optimizer)


def test_options_follow_the_parameters_of_their_group_wherever_it_stands() -> None:
    a, b = parameters()[:2], parameters()[2:]
    source = stepped(LUMA, [{"params": a, "lr": 0.1}, {"params": b, "lr": 0.2}])
    optimizer = LUMA([{"params": parameters()[2:]}, {"params": parameters()[:2]}])
    optimizer.load_state_dict(source.state_dict())
    assert rates(optimizer) == [0.2, 0.1]
    for name, state in by_name(source).items():
        assert_same_state(state, by_name(optimizer)[name])
    one = LUMA(parameters(), lr=0.7)
    one.load_state_dict(source.state_dict(), strict=False)
    assert rates(one) == [0.7]


# The same rule under three names


@pytest.mark.parametrize("way", ["state_dict", "states"])
@pytest.mark.parametrize(
    ("there", "here"),
    [
        (LUMA, AdamW),
        (partial(AdamW, codec="luma16"), LUMA),
        (partial(TurboAdam, preset="8bit"), partial(AdamW, codec="8bit")),
        (partial(AdamW, codec="5bit"), TurboAdam),
        (partial(LUMA, codec="5bit"), TurboAdam),
    ],
)
def test_adamw_goes_on_bit_for_bit_with_state_in_its_codecs(
    there: Any, here: Any, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, optimizer = stepped(there, parameters(), seed=1), here(parameters(), seed=2)
    if way == "state_dict":
        optimizer.load_state_dict(source.state_dict())
    else:
        optimizer.load_parameter_states(
            source.group_options(), source.parameter_states(), algorithm=source.algorithm
        )
    assert not caplog.records
    assert optimizer.group_options() == source.group_options()
    for name, state in by_name(source).items():
        assert_same_state(state, by_name(optimizer)[name])


@pytest.mark.parametrize("here", [LUMA, partial(AdamW, codec="8bit"), AdamMini])
@pytest.mark.parametrize("there", [TurboAdam, partial(AdamW, codec="bf16")])
def test_state_in_other_codecs_is_coded_in_those_that_were_chosen(
    there: Any, here: Any, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = here(parameters())
    chosen = optimizer.group_options()[0]["codecs"]
    optimizer.load_state_dict(stepped(there, parameters()).state_dict())
    assert optimizer.group_options()[0]["codecs"] == chosen
    assert "moments are coded in its own codecs" in caplog.text
    take_steps(optimizer)


# Parts


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_there_is_is_loaded_and_the_rest_is_reported(kind: Optimizer) -> None:
    """A new head, a body of which a layer was frozen, and one that is gone."""
    saved_sizes = {**SIZES, "frozen.weight": (8, 64), "old.weight": (4, 64)}
    source: Any = kind(parameters(saved_sizes), lr=0.1)
    for name, param, _ in source.parameters_by_name():
        if name != "frozen.weight":
            param.grad = torch.ones_like(param)
    source.step()
    sizes = {**SIZES, "b.weight": (10, 40), "b.bias": (10,), "frozen.weight": (8, 64)}
    sizes["new.weight"] = (4, 64)
    optimizer: Any = kind(parameters(sizes, prefix="_orig_mod."))
    take_steps(optimizer, 3)
    with pytest.raises(StateMismatchError):
        optimizer.load_state_dict(source.state_dict())
    assert int(optimizer.parameter_state("_orig_mod.a.bias").step) == 3
    report = optimizer.load_state_dict(source.state_dict(), strict=False)
    assert report.new == ("_orig_mod.b.weight", "_orig_mod.b.bias", "_orig_mod.new.weight")
    assert report.missing == ("_orig_mod.frozen.weight",)
    assert report.left_out == ("b.weight", "b.bias", "old.weight")
    assert rates(optimizer) == [0.1]
    states = {
        state.name.removeprefix("_orig_mod."): state for state in optimizer.parameter_states()
    }
    assert [name for name, state in states.items() if state.codecs] == ["a.weight", "a.bias"]
    for name in ("a.weight", "a.bias"):
        want = source.parameter_state(name)
        assert all(torch.equal(want.fields[key], states[name].fields[key]) for key in want.fields)
    take_steps(optimizer)
    assert {int(state.step) for state in optimizer.parameter_states()} == {2, 3}


def test_adamws_state_is_loaded_in_part_too() -> None:
    adamw = stepped(torch.optim.AdamW, parameters())
    optimizer = LUMA(parameters({**SIZES, "b.bias": (9,), "c": (3,)}))
    report = optimizer.load_state_dict(adamw.state_dict(), strict=False)
    assert (report.new, report.left_out) == (("b.bias", "c"), ("b.bias",))
    assert int(optimizer.parameter_state("a.weight").step) == 2
