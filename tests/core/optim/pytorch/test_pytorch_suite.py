"""What PyTorch tests of each of its optimizers holds for ours, under AdamW's own inputs.

The inputs are those of ``torch.testing._internal.common_optimizers``; the tests are told anew.
"""

import copy
import io
import pickle
import sys
import types
import unittest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from luma_core import AdamMini
from luma_core.errors import LumaError
from tests.core.optim.pytorch.pytorch_inputs import (
    INPUTS,
    OPTIMIZERS,
    REFUSED,
    Mini,
    assert_same,
    every,
    every_input,
    loss_of,
    parameters,
    train,
    value,
)


@pytest.fixture(scope="module")
def infos() -> dict[type, Any]:
    """Return PyTorch's ``OptimizerInfo`` of each optimizer of ours."""
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch's own tests alone need the package; a base class is all that is used here.
        base = types.ModuleType("expecttest")
        base.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "expecttest", base)
        from torch.testing._internal import common_optimizers as common

    adamw = next(info for info in common.optim_db if info.optim_cls is torch.optim.AdamW)
    assert [each.desc for each in adamw.optim_inputs_func("cpu")] == INPUTS + REFUSED
    return {
        made: common.OptimizerInfo(
            made,
            optim_inputs_func=adamw.optim_inputs_func,
            optim_error_inputs_func=adamw.optim_error_inputs_func,
            scheduler_inputs=adamw.scheduler_inputs,
            supports_complex=False,
        )
        for made in OPTIMIZERS
    }


def options(info: Any, desc: str) -> dict[str, Any]:
    kwargs = next(each.kwargs for each in info.optim_inputs_func("cpu") if each.desc == desc)
    return {**kwargs, "seed": 1}


def same_content(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_content, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@every
@every_input
@pytest.mark.parametrize("laid_out", ["contiguous", "not contiguous"])
def test_loss_moves_the_right_way(infos, optimizer_class, desc: str, laid_out: str) -> None:
    params = parameters()
    if laid_out != "contiguous":
        params[0] = nn.Parameter(params[0].detach().t().contiguous().t())
        params[1] = nn.Parameter(params[1].detach().repeat_interleave(2)[::2])
    kwargs = options(infos[optimizer_class], desc)
    optimizer = optimizer_class(params, **kwargs)
    first = value(params)
    for _ in range(5):
        optimizer.zero_grad()
        optimizer.step(lambda: loss_of(params).backward())
    train(optimizer, params, 5)
    last = value(params)
    assert last > first if kwargs.get("maximize") else last < first


@every
def test_layout_changes_no_bit(optimizer_class) -> None:
    plain, strided = parameters(), parameters()
    strided[0] = nn.Parameter(strided[0].detach().t().contiguous().t())
    for params in (plain, strided):
        optimizer = optimizer_class(params, seed=1, backend="pytorch")
        for _ in range(3):
            for param in params:
                param.grad = param.detach().sin().contiguous()
            optimizer.step()
    assert_same([p.detach() for p in plain], [p.detach() for p in strided])


@every
@every_input
def test_a_tensor_as_rate_is_the_number(infos, optimizer_class, desc: str) -> None:
    kwargs = {"lr": 1e-3, **options(infos[optimizer_class], desc)}
    found = []
    for lr in (kwargs["lr"], torch.tensor(kwargs["lr"], dtype=torch.float64)):
        params = parameters()
        train(optimizer_class(params, **{**kwargs, "lr": lr}), params)
        found.append([param.detach() for param in params])
    assert_same(*found)


@every
def test_groups_have_their_own_options(optimizer_class) -> None:
    params = parameters()
    start = [param.detach().clone() for param in params]
    groups = [{"params": params[:1]}, {"params": params[1:2], "lr": 0.0}]
    optimizer = optimizer_class(groups, lr=1e-2, weight_decay=0.0, seed=1)
    train(optimizer, params)
    moved = [not torch.equal(a, b) for a, b in zip(start, params, strict=True)]
    assert moved == [True, False, False]
    optimizer.add_param_group({"params": params[2:], "lr": 1e-1})
    train(optimizer, params)
    assert not torch.equal(start[2], params[2])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 0.0, 1e-1]


@every
def test_gradients_of_zeros_change_nothing_without_decay(optimizer_class) -> None:
    params = parameters()
    start = [param.detach().clone() for param in params]
    optimizer = optimizer_class(params, weight_decay=0.0)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_same([param.detach() for param in params], start)
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {1}


@every
@every_input
def test_a_state_dict_continues_bit_for_bit(infos, optimizer_class, desc: str) -> None:
    kwargs = options(infos[optimizer_class], desc)
    params = parameters()
    optimizer = optimizer_class(params, **kwargs)
    train(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [nn.Parameter(param.detach().clone()) for param in params]
    again = optimizer_class(others, **{**kwargs, "lr": 0.5})
    again.load_state_dict(torch.load(file, weights_only=True))
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    copied = copy.deepcopy(optimizer)
    copies = [param for group in copied.param_groups for param in group["params"]]
    restored = pickle.loads(pickle.dumps(optimizer))  # noqa: S301
    pickled = [param for group in restored.param_groups for param in group["params"]]
    train(optimizer, params)
    for other, theirs in ((again, others), (copied, copies), (restored, pickled)):
        train(other, theirs)
        assert_same([p.detach() for p in theirs], [p.detach() for p in params])
        assert same_content(other.state_dict()["state"], optimizer.state_dict()["state"])
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@every
def test_hooks_of_state_dicts(optimizer_class) -> None:
    params = parameters()
    optimizer = optimizer_class(params)
    train(optimizer, params, 1)
    calls: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(lambda _: calls.append("b")),
        optimizer.register_state_dict_pre_hook(lambda _: calls.append("a"), prepend=True),
        optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "more": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda _, saved: calls.append("c")),
        optimizer.register_load_state_dict_post_hook(lambda _: calls.append("d")),
    ]
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["a", "b", "c", "d"]
    for handle in handles:
        handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["a", "b", "c", "d"]


@every
def test_hooks_of_steps(optimizer_class) -> None:
    params = parameters()
    optimizer = optimizer_class(params)
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all after")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
    ]
    train(optimizer, params, 1)
    for handle in handles:
        handle.remove()
    train(optimizer, params, 1)
    assert calls == ["all before", "before", "after", "all after"]


@every
def test_missing_gradients_and_empty_parameters(optimizer_class) -> None:
    params = [*parameters(), nn.Parameter(torch.empty(0, 140)), nn.Parameter(torch.empty(0))]
    optimizer = optimizer_class(params)
    optimizer.step()
    assert not any(optimizer.state.values())
    params[3].grad, params[4].grad = torch.empty(0, 140), torch.empty(0)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert [bool(optimizer.state.get(param)) for param in params] == [
        True,
        False,
        False,
        True,
        True,
    ]
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(params[0].grad, torch.zeros_like(params[0]))
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)
    copied = optimizer_class(params)
    copied.load_state_dict(optimizer.state_dict())


@every
def test_dtypes_side_by_side(optimizer_class) -> None:
    params = parameters() + parameters(torch.bfloat16)
    optimizer = optimizer_class(params, lr=1e-2)
    first = value(params[3:])
    for _ in range(5):
        optimizer.zero_grad()
        (loss_of(params[:3]) + loss_of(params[3:])).backward()
        optimizer.step()
    assert value(params[3:]) < first
    assert [param.dtype for param in params] == [torch.float32] * 3 + [torch.bfloat16] * 3


@every
def test_complex_parameters_are_refused(optimizer_class) -> None:
    param = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    with pytest.raises(LumaError):
        optimizer_class([param]).step()
    assert torch.equal(param.detach(), torch.ones(3, dtype=torch.complex64))


@every
def test_a_closure_gives_the_loss(optimizer_class) -> None:
    params = parameters()
    optimizer = optimizer_class(params)

    def closure() -> float:
        assert torch.is_grad_enabled()
        loss = loss_of(params)
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == value(parameters())


@every
def test_what_pytorch_refuses_is_refused(infos, optimizer_class) -> None:
    for wrong in infos[optimizer_class].optim_error_inputs_func("cpu", torch.float32):
        given = wrong.optimizer_error_input
        # Of options that concern AdamW's implementations only, or that ours take in any mixture.
        if "foreach" in given.kwargs or "both floats or both" in given.desc:
            continue
        params, made = parameters(), optimizer_class
        if given.params is not None:
            params, made = given.params, AdamMini if made is Mini else made
        with pytest.raises((wrong.error_type, LumaError)):
            made(params, **given.kwargs)
    for desc in REFUSED:
        with pytest.raises((TypeError, ValueError), match=desc):
            optimizer_class(parameters(), **options(infos[optimizer_class], desc))


@every
def test_plateaus_and_pytorchs_own_schedules(infos, optimizer_class) -> None:
    for makers in infos[optimizer_class].scheduler_inputs:
        params = parameters()
        optimizer = optimizer_class(params, lr=1e-2)
        schedules = [make(optimizer) for make in makers]
        first = value(params)
        for _ in range(5):
            loss = train(optimizer, params, 1)
            for schedule in schedules:
                plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
                schedule.step(*[loss] * plateau)
        assert value(params) < first
