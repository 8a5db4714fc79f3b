"""Adam-mini takes blocks from the model that it was given, and shows those that it steps with."""

import copy

import pytest
import torch
from torch import nn

from luma_core import AdamMini
from luma_core.errors import ConfigurationError


def model(width: int = 48) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 64), nn.LayerNorm(64), nn.Linear(64, width))


def step(net: nn.Module, optimizer: AdamMini) -> None:
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model='gpt' must be a torch\.nn\.Module"):
        AdamMini(model().named_parameters(), model="gpt")  # type: ignore[arg-type]


def test_an_unrelated_model_is_refused() -> None:
    net = model()
    named = [(f"encoder.{name}", param) for name, param in net.named_parameters()]
    with pytest.raises(ConfigurationError, match=r"'encoder\.0\.weight' is not one of model's"):
        AdamMini(named, model=nn.Linear(4, 4))
    optimizer = AdamMini(net.named_parameters(), model=net)
    other = nn.Linear(8, 8)
    with pytest.raises(ConfigurationError, match="is not one of model's"):
        optimizer.add_param_group({"params": [("other.weight", other.weight)]})
    assert len(optimizer.param_groups) == 1


def test_a_copy_of_the_model_tells_the_partition_by_names() -> None:
    net = model()
    by_copy = AdamMini(net.named_parameters(), model=copy.deepcopy(net))
    assert [row.partition for row in by_copy.partition] == [
        row.partition for row in AdamMini(net.named_parameters(), model=net).partition
    ]


def test_the_table_shows_the_partition_of_loaded_state() -> None:
    net = model()
    saved = AdamMini(
        net.named_parameters(), model=net, overrides={"0.weight": "whole", "2.weight": "element"}
    )
    step(net, saved)
    optimizer = AdamMini(net.named_parameters(), model=net)
    assert optimizer.partition["0.weight"].partition.segments == 64
    optimizer.load_state_dict(saved.state_dict())
    table = optimizer.partition
    assert table["0.weight"].partition.segments == 1
    assert table["2.weight"].partition.elementwise
    assert table["0.weight"].why == table["2.weight"].why == "the loaded state"
    assert table["0.bias"].why != "the loaded state"
    step(net, optimizer)
