"""Stepping within backward gives what stepping after it gives, and keeps no gradient."""

import copy

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.errors import ConfigurationError
from luma_core.optim import step_in_backward

KINDS = {
    "luma": lambda p: LUMA(p, seed=1),
    "turbo": lambda p: TurboAdam(p, seed=1),
    "mini": lambda p: AdamMini(p, seed=1, n_heads=2),
    "lamb": lambda p: LAMB(p, seed=1),
}


def train(model, optimizer, steps: int = 4) -> None:
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for step in range(steps):
        x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_a_step_after_backward(kind: str, make_model) -> None:
    plain, model = make_model(), make_model()
    train(plain, KINDS[kind](plain.named_parameters()))
    optimizer = KINDS[kind](model.named_parameters())
    step_in_backward(model, optimizer)
    train(model, optimizer)
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_gradients_are_freed_until_it_is_removed(make_model) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters())
    alive = []
    handle = step_in_backward(model, optimizer)
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    x = torch.randn(5, 3, 8, 8)
    model(x).sum().backward()
    assert alive == [0] * len(list(model.parameters()))
    handle.remove()
    model(x).sum().backward()
    assert all(param.grad is not None for param in model.parameters())
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_state_loaded_between_steps_is_used(make_model) -> None:
    model = make_model()
    optimizer = LUMA(model.named_parameters(), seed=1)
    step_in_backward(model, optimizer)
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 1)
    assert {state.step for state in optimizer.parameter_states()} == {3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: LAMB(m.named_parameters(), max_grad_norm=1.0), "max_grad_norm=1.0"),
        (lambda m: LUMA(m.named_parameters(), nonfinite="raise"), "nonfinite='raise'"),
        (lambda m: LUMA(list(m.named_parameters())[:2]), "2 parameters"),
        (lambda m: LUMA(nn.Linear(2, 2).parameters()), "are not the model's"),
    ],
)
def test_what_cannot_work_is_refused(make, message: str, make_model) -> None:
    model = make_model()
    with pytest.raises(ConfigurationError, match=message):
        step_in_backward(model, make(model))
