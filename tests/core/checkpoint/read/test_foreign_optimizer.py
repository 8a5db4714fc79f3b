"""An optimizer of another kind is refused by name, in both directions."""

from pathlib import Path

import pytest
import torch

from luma_core import LUMA, checkpoint
from luma_core.errors import ConfigurationError


def test_save_and_load_refuse_another_optimizer(tmp_path: Path) -> None:
    model = torch.nn.Linear(64, 64)
    adamw = torch.optim.AdamW(model.parameters())
    message = "optimizer is a torch AdamW; it must be a LUMA optimizer"
    with pytest.raises(ConfigurationError, match=message):
        checkpoint.save(str(tmp_path / "a"), optimizer=adamw)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    checkpoint.save(str(tmp_path / "b"), optimizer=LUMA(model.named_parameters()))
    with pytest.raises(ConfigurationError, match=message):
        checkpoint.load(str(tmp_path / "b"), optimizer=adamw)  # type: ignore[arg-type]
