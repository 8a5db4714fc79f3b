"""A checkpoint of PyTorch's AdamW is read as AdamW's state, in any format and codec."""

import pytest
import torch

from luma_core import TurboAdam, checkpoint, convert
from luma_core.errors import ConversionError


def _saved(place, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(128, 96)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.02, **options)
    model(torch.randn(4, 128)).square().mean().backward()
    optimizer.step()
    checkpoint.save(place, optimizer=optimizer)
    return model, optimizer


def test_it_becomes_a_file_of_adamw_exactly(tmp_path):
    model, optimizer = _saved(tmp_path / "a")
    convert.convert(tmp_path / "a", tmp_path / "a.pt", to="adamw")
    again = torch.optim.AdamW(model.named_parameters())
    again.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert again.param_groups[0]["lr"] == 0.02
    for param, state in optimizer.state.items():
        assert all(again.state[param][key].equal(value) for key, value in state.items())


def test_it_becomes_a_compact_checkpoint(tmp_path):
    model, _ = _saved(tmp_path / "a")
    convert.convert(tmp_path / "a", tmp_path / "small", to="luma", codec="turbo")
    loaded = TurboAdam(model.named_parameters())
    checkpoint.load(tmp_path / "small", optimizer=loaded)
    assert loaded.param_groups[0]["lr"] == 0.02
    sizes = [checkpoint.open(tmp_path / n).manifest.summary.stored_bytes for n in ("a", "small")]
    assert sizes[1] < 0.15 * sizes[0]


def test_what_has_more_than_two_moments_is_refused(tmp_path):
    _saved(tmp_path / "a", amsgrad=True)
    with pytest.raises(ConversionError, match="max_exp_avg_sq"):
        convert.convert(tmp_path / "a", tmp_path / "a.pt", to="adamw")
