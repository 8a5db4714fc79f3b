"""Of what device tables are built from, every change is seen, and nothing else is."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from luma_core import LUMA
from luma_core.optim.step import watch
from luma_core.optim.step.watch import Change, Watch, metadata_comparison

ONE_CALL = "_tensors_data_ptrs_at_indices_equal"


def one_call(tensors: list[torch.Tensor], addresses: list[int], indices: list[int]) -> bool:
    """Do as PyTorch's function of that name does, which only builds for CUDA have."""
    return all(tensors[index].data_ptr() == addresses[index] for index in indices)


@pytest.fixture(params=["one call", "in Python", "without guards"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look in each of the ways that builds of PyTorch allow."""
    if request.param == "one call":
        monkeypatch.setattr(torch._C, ONE_CALL, one_call, raising=False)
    else:
        monkeypatch.delattr(torch._C, ONE_CALL, raising=False)
    if request.param == "without guards":
        monkeypatch.setattr(watch, "metadata_comparison", lambda tensors: lambda *now: False)


class Case:
    """An optimizer with state and gradients, and a watch over it."""

    def __init__(self) -> None:
        shapes = ((64, 128), (128, 128), (40,))
        self.params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        self.params.append(nn.Parameter(torch.ones(16, 64, dtype=torch.bfloat16)))
        for param in self.params:
            param.grad = torch.ones_like(param)
        self.optimizer = LUMA(self.params, seed=1, backend="pytorch")
        self.optimizer.init_state()
        self.watch = Watch(self.optimizer.param_groups, self.optimizer.state)

    def look(self) -> Change:
        return self.watch.change(self.optimizer.param_groups, self.optimizer.state)


def replace_data(case: Case) -> None:
    case.params[1].data = case.params[1].data.clone()


def grow(case: Case) -> None:
    case.params[1].data = torch.ones(130, 128)


def shrink_in_place(case: Case) -> None:
    case.params[1].data = case.params[1].data[:100]


def transpose_in_place(case: Case) -> None:
    case.params[1].data = case.params[1].data.t()


def retype_in_place(case: Case) -> None:
    case.params[1].data = case.params[1].data.view(torch.bfloat16)[:, ::2]


def reinterpret_in_place(case: Case) -> None:
    case.params[3].data = case.params[3].data.view(torch.float16)


def other_parameter_of_the_same_memory(case: Case) -> None:
    case.optimizer.param_groups[0]["params"][1] = nn.Parameter(case.params[1].data)


def freeze(case: Case) -> None:
    case.params[1].grad = None


def transpose_gradient(case: Case) -> None:
    assert case.params[1].grad is not None
    case.params[1].grad = case.params[1].grad.t()


def retype_gradient(case: Case) -> None:
    assert case.params[1].grad is not None
    case.params[1].grad.data = case.params[1].grad.data.view(torch.int32)


def sparse_gradient(case: Case) -> None:
    case.params[1].grad = torch.ones(128, 128).to_sparse()


def add_a_group(case: Case) -> None:
    case.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def add_a_parameter(case: Case) -> None:
    case.optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(3)))


def move_to_another_group(case: Case) -> None:
    groups = case.optimizer.param_groups
    groups.append({**groups[0], "params": [groups[0]["params"].pop()]})


def replace_a_state_tensor(case: Case) -> None:
    state = case.optimizer.state[case.params[0]]
    state["exp_avg_sq.codes"] = state["exp_avg_sq.codes"].clone()


def replace_a_counter(case: Case) -> None:
    state = case.optimizer.state[case.params[2]]
    state["step"] = state["step"].clone()


def replace_data_of_a_state_tensor(case: Case) -> None:
    tensor = case.optimizer.state[case.params[0]]["exp_avg.exponent"]
    tensor.data = tensor.data.clone()


def exchange_states(case: Case) -> None:
    state = case.optimizer.state
    first, second = case.params[:2]
    state[first], state[second] = state[second], state[first]


def drop_a_state(case: Case) -> None:
    del case.optimizer.state[case.params[0]]


def give_a_state_to_another(case: Case) -> None:
    case.optimizer.state[nn.Parameter(torch.ones(40))] = case.optimizer.state.pop(case.params[2])


def load_a_state_dict(case: Case) -> None:
    case.optimizer.load_state_dict(copy.deepcopy(case.optimizer.state_dict()))


def set_an_option(case: Case) -> None:
    case.optimizer.param_groups[0]["stochastic_rounding"] = False


@pytest.mark.parametrize(
    "change",
    [
        replace_data,
        grow,
        shrink_in_place,
        transpose_in_place,
        retype_in_place,
        reinterpret_in_place,
        other_parameter_of_the_same_memory,
        freeze,
        transpose_gradient,
        retype_gradient,
        sparse_gradient,
        add_a_group,
        add_a_parameter,
        move_to_another_group,
        replace_a_state_tensor,
        replace_a_counter,
        replace_data_of_a_state_tensor,
        exchange_states,
        drop_a_state,
        give_a_state_to_another,
        load_a_state_dict,
        set_an_option,
    ],
    ids=lambda change: change.__name__,
)
def test_every_change_is_seen(change: Callable[[Case], None]) -> None:
    case = Case()
    change(case)
    assert case.look() is Change.ANYTHING


def test_a_step_changes_nothing_that_tables_depend_on() -> None:
    case = Case()
    before = [param.detach().clone() for param in case.params]
    case.optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(case.params, before, strict=True))
    assert case.look() is Change.NOTHING


def test_only_a_gradient_elsewhere_is_told_from_other_changes_and_only_once() -> None:
    case = Case()
    kept = case.params[0].grad
    case.params[0].grad = torch.zeros(64, 128)
    assert case.look() is Change.GRADIENTS
    assert case.look() is Change.NOTHING
    case.params[0].grad = kept
    assert case.look() is Change.GRADIENTS


def test_another_shape_of_the_same_elements_changes_nothing() -> None:
    case = Case()
    case.params[1].data = case.params[1].data.view(64, 256)
    assert case.look() is Change.NOTHING


def test_memory_of_gradients_is_not_held() -> None:
    case = Case()
    grad = case.params[0].grad
    assert grad is not None
    alive = torch.multiprocessing.reductions.StorageWeakRef(grad.untyped_storage())
    case.look()
    case.params[0].grad = None
    del grad
    assert alive.expired()


def test_addresses_are_compared_in_one_call_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def count(*arguments: object) -> bool:
        calls.append(arguments)
        return True

    monkeypatch.setattr(torch._C, ONE_CALL, count, raising=False)
    case = Case()
    monkeypatch.setattr(watch, "_addresses_of", None)
    assert case.look() is Change.NOTHING
    assert len(calls) == 2


def test_metadata_are_compared_in_one_call() -> None:
    tensors = [torch.ones(4, 6), torch.ones(3, dtype=torch.bfloat16)]
    same = metadata_comparison(tensors)
    assert same(torch.zeros(4, 6), torch.zeros(3, dtype=torch.bfloat16))
    assert not same(torch.zeros(6, 4).t(), tensors[1])
    assert not same(torch.zeros(4, 7), tensors[1])
    assert not same(tensors[0], torch.zeros(3, dtype=torch.float16))
