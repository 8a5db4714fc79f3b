"""``luma partition`` on everything a model can come from."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from luma_core import LUMA, checkpoint

FACTORY = """
import torch
from torch import nn

def attention():
    return nn.Sequential(nn.Embedding(10, 24), nn.MultiheadAttention(24, 3))

def looks_at_values():
    sizes = [int(x) for x in torch.linspace(2, 8, 3)]
    return nn.Linear(*sizes[:2])

def nothing():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "made_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_that_makes_a_model(luma, folder) -> None:
    code, out, err = luma("partition", "made_models:attention", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["model"] == "made_models:attention"
    rows = {row["name"]: row for row in found["parameters"]}
    assert rows["1.in_proj_weight"]["segments"] == 3 + 3 + 24
    assert rows["1.in_proj_weight"]["partition"]["runs"] == [[3, 8], [3, 8], [24, 1]]
    assert found["segments"] == sum(row["segments"] for row in rows.values())
    code, out, _ = luma("partition", "made_models:attention", "--quiet")
    assert int(out) == found["segments"]
    code, out, _ = luma("partition", "made_models:looks_at_values")
    assert code == 0
    assert "module Linear" in out


def test_a_configuration_of_transformers(luma, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        code, out, err = luma("partition", path, "--json")
        assert (code, err) == (0, "")
        rows = {row["name"]: row for row in json.loads(out)["parameters"]}
        assert rows["model.layers.0.self_attn.k_proj.weight"]["segments"] == 2
        assert rows["lm_head.weight"]["kind"] == "output"
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    code, _, err = luma("partition", tmp_path)
    assert code == 2
    assert "transformers cannot build its model" in err


def test_names_and_shapes_of_saved_tensors(luma, tmp_path) -> None:
    shapes = {"attn.q_proj.weight": (64, 32), "attn.k_proj.weight": (32, 32)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    optimizer = LUMA([(n, torch.nn.Parameter(t)) for n, t in tensors.items()], seed=0)
    checkpoint.save(tmp_path / "run", optimizer=optimizer)
    for path in (tmp_path / "model.safetensors", tmp_path / "run"):
        code, out, _ = luma("partition", path, "--n-heads", 4, "--n-kv-heads", 2, "-q")
        assert (code, out) == (0, "6\n")
        code, out, _ = luma("partition", path, "--head-dim", 16, "--override", "*.q_*=row", "-q")
        assert (code, out) == (0, "66\n")
        code, _, err = luma("partition", path)
        assert code == 2
        assert "n_heads is missing" in err
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    assert luma("partition", tmp_path / "bad.safetensors")[0] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "no such file or folder"),
        (["no_such_module:f"], 2, "No module named 'no_such_module'"),
        (["made_models:f"], 2, "has no such function"),
        (["made_models:nothing"], 2, "returned a int"),
        (["made_models:attention", "--override", "row"], 2, "must be GLOB=CUT"),
        (["made_models:attention", "--override", "x=row"], 2, "matches none of the 5 parameters"),
        (["made_models:attention", "--n-heads", "0"], 2, "n_heads=0 must be a positive integer"),
    ],
)
def test_what_cannot_be_cut_is_a_clear_error(luma, folder, arguments, code, message) -> None:
    found, out, err = luma("partition", *arguments)
    assert (found, out) == (code, "")
    assert message in err
