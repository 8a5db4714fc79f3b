"""The options of a conversion are one dataclass, and keywords of the functions as before."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

from luma_core import checkpoint, convert
from luma_core.convert import ConvertOptions
from luma_core.convert.base import ConvertKeywords
from luma_core.errors import ConfigurationError

both = pytest.mark.parametrize("function", [convert.convert, convert.convert_together])


@pytest.fixture
def adamw(tmp_path: Path) -> Path:
    layer = nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(layer.named_parameters())
    layer(torch.ones(300)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "adamw.pt")
    return tmp_path / "adamw.pt"


@both
def test_every_option_is_a_keyword_in_signature_and_docstring(function) -> None:
    shown = inspect.signature(function).parameters
    for field in fields(ConvertOptions):
        assert shown[field.name].default == field.default
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"    {field.name}: " in function.__doc__
    assert list(ConvertKeywords.__annotations__) == [field.name for field in fields(ConvertOptions)]
    assert get_type_hints(ConvertKeywords) == get_type_hints(ConvertOptions)


def test_keywords_replace_options(tmp_path: Path, adamw: Path) -> None:
    options = ConvertOptions(codec="bf16", seed=4)
    convert.convert(adamw, tmp_path / "a", to="luma", options=options, codec="fp32")
    (group,) = checkpoint.open(tmp_path / "a").group_options()
    assert group["codecs"]["exp_avg"]["name"] == "fp32"
    assert group["seed"] == 4


@both
def test_what_is_no_option_is_an_error(tmp_path: Path, adamw: Path, function) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword"):
        function(adamw, tmp_path / "a", to="luma", codecs="fp32")
    with pytest.raises(ConfigurationError, match="must be ConvertOptions, or None"):
        function(adamw, tmp_path / "a", to="luma", options={"codec": "fp32"})
