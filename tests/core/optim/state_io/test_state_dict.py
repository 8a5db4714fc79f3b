"""State in and out: state_dict, torch.save, AdamW exchange; codes are never cast or mixed up."""

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.errors import StateMismatchError

Make = Callable[..., nn.Module]
Train = Callable[..., float]


def codes(optimizer: LUMA) -> list[dict[str, torch.Tensor]]:
    return [dict(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


def assert_same_state(a: LUMA, b: LUMA) -> None:
    for left, right in zip(codes(a), codes(b), strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("named", [True, False])
def test_resuming_from_a_state_dict_is_bit_identical(
    make_model: Make, train: Train, dtype: torch.dtype, named: bool
) -> None:
    model = make_model(dtype=dtype)
    optimizer = LUMA(model.named_parameters() if named else model.parameters(), lr=3e-3)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 5, start=5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(seed=9, dtype=dtype)
    resumed.load_state_dict(saved["model"])
    again = LUMA(resumed.named_parameters() if named else resumed.parameters(), block_size=64)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, 5, start=5)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True)
    )
    assert_same_state(optimizer, again)


def test_loaded_state_is_independent_of_its_source(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.parameters())
    train(model, optimizer, 2)
    twin = LUMA(copy.deepcopy(model).parameters())
    twin.load_state_dict(optimizer.state_dict())
    frozen = copy.deepcopy(codes(twin))
    train(model, optimizer, 2)
    for left, right in zip(codes(twin), frozen, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_load_hooks_run(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.parameters())
    train(model, optimizer, 1)
    calls: list[str] = []

    def before(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("before")
        groups = [{**group, "lr": 0.25} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after"]
    assert optimizer.param_groups[0]["lr"] == 0.25


def broken(optimizer: LUMA, how: str) -> dict[str, Any]:
    state = copy.deepcopy(optimizer.state_dict())
    entry = state["state"][1]
    group = state["param_groups"][0]
    if how == "shape":
        entry["exp_avg.value"] = torch.zeros(3)
    elif how == "dtype":
        entry["exp_avg.value"] = entry["exp_avg.value"].half()
    elif how == "missing":
        del entry["exp_avg.value"]
    elif how == "unknown":
        entry["momentum"] = torch.zeros(3)
    elif how == "names":
        group["param_names"][1] = "other.weight"
    elif how == "groups":
        state["param_groups"].append(group)
    elif how == "count":
        group["params"] = group["params"][:-1]
    elif how == "adamw":
        del group["codecs"]
    elif how == "codec":
        group["codecs"]["exp_avg"]["block_size"] = 32
        group["codecs"]["exp_avg_sq"]["block_size"] = 32
    elif how == "blocks":
        group["codecs"]["exp_avg"]["block_size"] = 32
    elif how == "codec name":
        group["codecs"]["exp_avg"]["name"] = "other"
    elif how == "codecs":
        group["codecs"] = ["luma16_m", "luma16_v"]
    elif how == "bound":
        del group["min_compress_elements"]
    elif how == "option":
        group["betas"] = (0.9, 1.5)
    elif how == "no params":
        del group["params"]
    elif how == "no state":
        del state["state"]
    elif how == "no groups":
        del state["param_groups"]
    elif how == "stray":
        state["state"][77] = entry
    elif how == "entry":
        state["state"][1] = [1]
    elif how == "fewer names":
        group["param_names"].pop()
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", "'exp_avg.value' is torch.float32 [3]; it must be torch.float32 [8, 3, 3, 3]"),
        ("dtype", "'exp_avg.value' is torch.float16"),
        ("missing", "'conv.weight': missing fields 'exp_avg.value'"),
        ("unknown", "unknown fields 'momentum'"),
        ("names", "has 'other.weight' where the optimizer has 'conv.weight'"),
        ("groups", "has 2 parameter groups; the optimizer has 1"),
        ("count", "parameters; the optimizer's has 8"),
        ("adamw", "Load AdamW state with import_adamw_state()"),
        ("codec", "'exp_avg.exponent' is torch.uint8 [70, 3]; it must be torch.uint8 [70, 9]"),
        ("blocks", "saved parameter group 0: codecs="),
        ("codec name", "saved parameter group 0: codec 'other' is not known"),
        ("codecs", "must map each of 'exp_avg', 'exp_avg_sq' to a codec"),
        ("bound", "saved parameter group 0 has no 'min_compress_elements'"),
        ("option", "saved parameter group 0: betas=(0.9, 1.5) must be two numbers"),
        ("no params", "parameter group 0 of the state has no 'params'"),
        ("no state", "'state' of the state is missing"),
        ("no groups", "'param_groups' of the state is missing"),
        ("stray", "entries for '77', which no parameter group lists"),
        ("entry", "'conv.weight': the state is a list; it must be a mapping"),
        ("fewer names", "has None where the optimizer has"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_nothing_changes(
    make_model: Make, train: Train, how: str, message: str
) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    train(model, optimizer, 2)
    before = copy.deepcopy(codes(optimizer))
    options = copy.deepcopy(optimizer.param_groups[0]["codecs"])
    with pytest.raises(StateMismatchError) as caught:
        optimizer.load_state_dict(broken(optimizer, how))
    assert message in str(caught.value)
    assert optimizer.param_groups[0]["codecs"] == options
    for left, right in zip(codes(optimizer), before, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_parameter_states_load_by_name_in_any_order(make_model: Make, train: Train) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), lr=5e-3)
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = LUMA(list(twin.named_parameters())[::-1])
    other.load_parameter_states(optimizer.group_options(), optimizer.parameter_states())
    assert other.param_groups[0]["lr"] == 5e-3
    train(model, optimizer, 3, start=3)
    train(twin, other, 3, start=3)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_parameter_states_of_another_model_are_refused_by_name() -> None:
    ours = LUMA([("a.weight", nn.Parameter(torch.ones(2, 64)))])
    theirs = LUMA([("b.weight", nn.Parameter(torch.ones(2, 64)))])
    with pytest.raises(StateMismatchError, match=r"missing 'a\.weight', unexpected 'b\.weight'"):
        ours.load_parameter_states(theirs.group_options(), theirs.parameter_states())


class Failing(Mapping[str, torch.Tensor]):
    """Fields on a disk that cannot be read."""

    def __init__(self, fields: Mapping[str, torch.Tensor]) -> None:
        self._fields = fields

    def __getitem__(self, key: str) -> torch.Tensor:
        raise OSError(5, "Input/output error")

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def test_fields_that_cannot_be_read_leave_the_optimizer_unchanged(
    make_model: Make, train: Train
) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), lr=5e-3)
    train(model, optimizer, 1)
    states = optimizer.parameter_states()
    states[-1] = replace(states[-1], fields=Failing(states[-1].fields))
    twin = make_model()
    other = LUMA(twin.named_parameters(), lr=1e-3)
    train(twin, other, 2)
    before = copy.deepcopy(codes(other))
    with pytest.raises(OSError, match="Input/output error"):
        other.load_parameter_states(optimizer.group_options(), states)
    assert other.param_groups[0]["lr"] == 1e-3
    for left, right in zip(codes(other), before, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "saved parameter group 0: lr=-1.0 must be"),
        ({"nonfinite": "ignore"}, "saved parameter group 0: nonfinite='ignore' must be"),
        ({"codecs": {}}, "saved parameter group 0: codecs={} must map"),
    ],
)
def test_parameter_states_with_unfit_options_change_nothing(
    make_model: Make, train: Train, change: dict[str, Any], message: str
) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    train(model, optimizer, 1)
    groups = [{**group, **change} for group in optimizer.group_options()]
    other = LUMA(copy.deepcopy(model).named_parameters())
    options = other.group_options()
    with pytest.raises(StateMismatchError) as caught:
        other.load_parameter_states(groups, optimizer.parameter_states())
    assert message in str(caught.value)
    assert other.group_options() == options
    assert not other.state


def test_parameter_states_name_a_group_or_a_field_that_does_not_fit() -> None:
    def make() -> LUMA:
        optimizer = LUMA([("w", nn.Parameter(torch.ones(2, 64)))])
        optimizer.init_state()
        return optimizer

    ours, theirs = make(), make()
    (state,) = theirs.parameter_states()
    with pytest.raises(StateMismatchError, match="'w' is of the saved group 3"):
        ours.load_parameter_states(theirs.group_options(), [replace(state, group=3)])
    fields = {key: tensor[:1] for key, tensor in state.fields.items()}
    with pytest.raises(StateMismatchError, match="'w': field 'exp_avg"):
        ours.load_parameter_states(theirs.group_options(), [replace(state, fields=fields)])
    groups = [{k: v for k, v in theirs.group_options()[0].items() if k != "codecs"}]
    with pytest.raises(StateMismatchError, match="saved parameter group 0 has no 'codecs'"):
        ours.load_parameter_states(groups, [state])
