"""Parameters that ZeRO replaced by flat parts: what DeepSpeed does to an optimizer's groups."""

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini
from luma_core.errors import StateMismatchError, UnsupportedParameterError


def replaced(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Put one flat part in the place of each group's parameters; their names stay, as in ZeRO."""
    flat = []
    for group in optimizer.param_groups:
        values = torch.cat([param.detach().view(-1) for param in group["params"]])
        flat.append(nn.Parameter(values[: len(values) // 2 + 7].clone()))
        group["params"] = flat[-1:]
    return flat


def make(kind: type = LUMA, **options: object) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3))
    named = list(model.named_parameters())
    groups = [{"params": named[:2]}, {"params": named[2:], "weight_decay": 0.0}]
    optimizer = kind(groups, seed=1, **options)
    return optimizer, replaced(optimizer)


def step(optimizer: torch.optim.Optimizer, flat: list[nn.Parameter], index: int) -> None:
    generator = torch.Generator().manual_seed(index)
    for param in flat:
        param.grad = torch.randn(param.shape, generator=generator)
    every = optimizer.param_groups
    # Stages 1 and 2 step one group at a time.
    for group in every:
        optimizer.param_groups = [group]
        optimizer.step()
    optimizer.param_groups = every


def test_a_saved_run_goes_on_exactly() -> None:
    optimizer, flat = make(min_compress_elements=64)
    for index in range(3):
        step(optimizer, flat, index)
    saved = optimizer.state_dict()
    again, other = make(min_compress_elements=64)
    with torch.no_grad():
        for a, b in zip(other, flat, strict=True):
            a.copy_(b)
    again.load_state_dict(saved)
    for index in range(3, 6):
        step(optimizer, flat, index)
        step(again, other, index)
    assert all(map(torch.equal, flat, other))
    assert not optimizer.named
    exported = optimizer.export_adamw_state()
    assert exported["state"][0]["exp_avg"].shape == flat[0].shape
    assert "param_names" not in exported["param_groups"][0]


def test_its_state_does_not_fit_the_parameters_themselves() -> None:
    optimizer, flat = make()
    step(optimizer, flat, 0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3))
    named = list(model.named_parameters())
    whole = LUMA([{"params": named[:2]}, {"params": named[2:]}])
    with pytest.raises(StateMismatchError, match="parameters"):
        whole.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("kind", "options"), [(LAMB, {}), (AdamMini, {"n_heads": 2})])
def test_optimizers_that_need_shapes_refuse_it(kind: type, options: dict[str, int]) -> None:
    optimizer, flat = make(kind, **options)
    before = [param.detach().clone() for param in flat]
    with pytest.raises(UnsupportedParameterError, match="is a flat one"):
        step(optimizer, flat, 0)
    assert all(map(torch.equal, before, flat))
