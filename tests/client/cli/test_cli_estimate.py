"""``luma estimate``: what it says is what an optimizer takes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from luma_core import LUMA, AdamMini, Lion, TurboAdam, checkpoint
from luma_core.optim import estimate_state
from tests.optimizers import CLASSES

MODEL = """
from torch import nn

def model():
    return nn.Sequential(nn.Embedding(10, 24), nn.MultiheadAttention(24, 3), nn.Linear(24, 300))
"""


def taken(optimizer: torch.optim.Optimizer) -> int:
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values())


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 5, bias=False))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_what_the_state_takes(kind: type, dtype: torch.dtype) -> None:
    real = model().to(dtype)
    optimizer = kind(real.named_parameters())
    optimizer.init_state()
    shapes = [(name, tuple(param.shape)) for name, param in real.named_parameters()]
    for given in (shapes, list(real.named_parameters())):
        found = estimate_state(given, kind, dtype=dtype)
        assert found.elements == sum(param.numel() for param in real.parameters())
        assert found.state_bytes == taken(optimizer)
        assert sum(found.state_bytes_by_parameter.values()) == found.state_bytes
        assert found.bits_per_parameter == 8 * found.state_bytes / found.elements


def test_rows_are_what_the_optimizers_take(luma, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "estimated_model.py").write_text(MODEL)
    code, out, err = luma("estimate", "estimated_model:model", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    namespace: dict = {}
    exec(MODEL, namespace)
    real = namespace["model"]()
    made = {
        ("luma", None): LUMA(real.named_parameters()),
        ("turbo_adam", "8bit"): TurboAdam(real.named_parameters(), preset="8bit"),
        ("adam_mini", None): AdamMini(real.named_parameters(), model=real),
        ("lion", None): Lion(real.named_parameters()),
        ("torch.optim.AdamW", None): torch.optim.AdamW(real.parameters()),
    }
    for param in real.parameters():
        param.grad = torch.ones_like(param)
    rows = {(row["optimizer"], row["codec"]): row for row in found["optimizers"]}
    for key, optimizer in made.items():
        optimizer.step()
        assert rows[key]["state_bytes"] == taken(optimizer), key
        total = rows[key]["state_bytes"] + 2 * found["weight_bytes"]
        assert rows[key]["total_bytes"] == total
    assert found["elements"] == sum(param.numel() for param in real.parameters())


def test_files_and_checkpoints(luma, tmp_path) -> None:
    real = model()
    save_file(real.state_dict(), tmp_path / "model.safetensors")
    optimizer = LUMA(real.named_parameters())
    optimizer.init_state()
    checkpoint.save(tmp_path / "saved", optimizer=optimizer)
    for source in ("model.safetensors", "saved"):
        code, out, err = luma("estimate", str(tmp_path / source), "--optimizer", "luma", "--quiet")
        assert (code, err) == (0, "")
        assert int(out) == taken(optimizer)


def test_codecs_and_dtypes(luma, tmp_path) -> None:
    save_file({"w": torch.zeros(64, 64)}, tmp_path / "model.safetensors")
    asked = ("--optimizer", "lion", "--codec", "fp32", "--codec", "bf16", "--dtype", "bfloat16")
    code, out, _ = luma("estimate", str(tmp_path / "model.safetensors"), *asked, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["weight_bytes"] == 2 * 64 * 64
    assert [row["codec"] for row in found["optimizers"]] == ["fp32", "bf16"]
    fp32, bf16 = (row["state_bytes"] for row in found["optimizers"])
    assert fp32 - bf16 == 2 * 64 * 64


def test_what_only_names_cannot_say_is_left_out_and_told(luma, tmp_path) -> None:
    save_file({"h.0.attn.q_proj.weight": torch.zeros(64, 64)}, tmp_path / "model.safetensors")
    place = str(tmp_path / "model.safetensors")
    code, out, err = luma("estimate", place)
    assert code == 0
    assert "adam_mini" not in out
    assert "adam_mini is left out: " in err
    code, out, err = luma("estimate", place, "--n-heads", "4")
    assert (code, err) == (0, "")
    assert "adam_mini" in out
    code, _, err = luma("estimate", place, "--optimizer", "adam_mini")
    assert code == 2
    assert "n_heads" in err


@pytest.mark.parametrize(
    ("option", "value"), [("--optimizer", "sgd"), ("--codec", "9bit"), ("--dtype", "int8")]
)
def test_unknown_names_are_refused_with_the_known(luma, tmp_path, option: str, value: str) -> None:
    save_file({"w": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    code, out, err = luma("estimate", str(tmp_path / "model.safetensors"), option, value)
    assert (code, out) == (2, "")
    assert f"{value!r} must be one of" in err


def test_the_table_fits_80_columns(luma, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    save_file({"w": torch.zeros(640, 640)}, tmp_path / "model.safetensors")
    code, out, _ = luma("estimate", str(tmp_path / "model.safetensors"))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "torch.optim.AdamW" in out
    assert "turbo_adam" in out
