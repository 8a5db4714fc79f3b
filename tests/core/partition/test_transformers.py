"""Real module trees of transformers, without weights: every parameter is cut as the paper says."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity(transformers.logging.CRITICAL)

from luma_core.partition import PartitionTable, partition_model, partition_names  # noqa: E402

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4}
TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 32, **TOKENS}
LLAMA = {**SIZES, **HEADS, **TOKENS, "num_key_value_heads": 2}


def build(kind: str, *, device: str = "meta", **options: object) -> torch.nn.Module:
    """The language model of a kind of configuration."""
    config = getattr(transformers, f"{kind}Config")(**options)
    auto = transformers.AutoModelForCausalLM
    if kind in ("Bert", "ModernBert"):
        auto = transformers.AutoModelForMaskedLM
    torch.manual_seed(0)
    with torch.device(device):
        return auto.from_config(config, attn_implementation="eager")


def cuts(table: PartitionTable) -> dict[str, tuple[str, int]]:
    """``per`` and segments by name, of the first layer and what is outside of layers."""
    return {
        row.name: (row.per, row.partition.segments)
        for row in table
        if not row.partition.elementwise and ".1." not in row.name
    }


def test_gpt2() -> None:
    model = build("GPT2", **GPT2)
    table = partition_model(model)
    assert cuts(table) == {
        "transformer.wte.weight": ("row", 100),
        "transformer.wpe.weight": ("row", 32),
        "transformer.h.0.attn.c_attn.weight": ("head, head, row", 4 + 4 + 64),
        "transformer.h.0.attn.c_proj.weight": ("column", 64),
        "transformer.h.0.mlp.c_fc.weight": ("column", 256),
        "transformer.h.0.mlp.c_proj.weight": ("column", 64),
    }
    qkv = table["transformer.h.0.attn.c_attn.weight"].partition
    assert (qkv.reduce, qkv.length, qkv.runs) == (64, 192, ((4, 16), (4, 16), (64, 1)))
    by_names = partition_names(model.named_parameters(), n_heads=4)
    assert [row.partition for row in by_names] == [row.partition for row in table]


LLAMA_CUTS = {
    "model.embed_tokens.weight": ("row", 100),
    "model.layers.0.self_attn.q_proj.weight": ("head", 4),
    "model.layers.0.self_attn.k_proj.weight": ("head", 2),
    "model.layers.0.self_attn.v_proj.weight": ("row", 32),
    "model.layers.0.self_attn.o_proj.weight": ("row", 64),
    "model.layers.0.mlp.gate_proj.weight": ("row", 96),
    "model.layers.0.mlp.up_proj.weight": ("row", 96),
    "model.layers.0.mlp.down_proj.weight": ("row", 64),
    "lm_head.weight": ("row", 100),
}


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_llama_and_qwen2(kind: str) -> None:
    model = build(kind, **LLAMA)
    assert cuts(partition_model(model)) == LLAMA_CUTS
    by_names = partition_names(model.named_parameters(), n_heads=4)
    assert {name: n for name, (_, n) in cuts(by_names).items()} == {
        name: n for name, (_, n) in LLAMA_CUTS.items()
    }


def test_qwen3_has_heads_wider_than_its_width_divided_by_their_number() -> None:
    table = partition_model(build("Qwen3", **LLAMA, head_dim=32))
    expected = {**LLAMA_CUTS, "model.layers.0.self_attn.v_proj.weight": ("row", 64)}
    assert cuts(table) == expected
    assert table["model.layers.0.self_attn.q_proj.weight"].partition.runs == ((4, 32),)
    assert table["model.layers.0.self_attn.k_proj.weight"].partition.runs == ((2, 32),)


def test_mixtral() -> None:
    table = partition_model(build("Mixtral", **LLAMA, num_local_experts=3))
    expected = {name: cut for name, cut in LLAMA_CUTS.items() if ".mlp." not in name}
    assert cuts(table) == expected | {
        "model.layers.0.mlp.gate.weight": ("row", 3),
        "model.layers.0.mlp.experts.gate_up_proj": ("row", 3 * 192),
        "model.layers.0.mlp.experts.down_proj": ("row", 3 * 64),
    }


def test_bert() -> None:
    table = partition_model(build("Bert", **SIZES, **HEADS, **TOKENS))
    layer = "bert.encoder.layer.0"
    assert {name: n for name, (_, n) in cuts(table).items() if name.startswith(layer)} == {
        f"{layer}.attention.self.query.weight": 4,
        f"{layer}.attention.self.key.weight": 4,
        f"{layer}.attention.self.value.weight": 64,
        f"{layer}.attention.output.dense.weight": 64,
        f"{layer}.intermediate.dense.weight": 96,
        f"{layer}.output.dense.weight": 64,
    }
    assert table["bert.embeddings.word_embeddings.weight"].partition.segments == 100
    assert table["bert.embeddings.LayerNorm.weight"].partition.elementwise


def test_gpt_oss_keeps_its_experts_transposed() -> None:
    table = partition_model(build("GptOss", **LLAMA, head_dim=16, num_local_experts=3))
    up = table["model.layers.0.mlp.experts.gate_up_proj"].partition
    assert (up.outer, up.reduce, up.length, up.inner) == (3, 64, 192, 1)
    assert table["model.layers.0.mlp.experts.gate_up_proj_bias"].partition.elementwise


FUSED = {
    "GPT2": GPT2,
    "GPTBigCode": GPT2,
    "GPTBigCode, many keys": {**GPT2, "multi_query": False},
    "GPTNeoX": {**SIZES, **HEADS, **TOKENS},
    "Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, **TOKENS},
    "Phi3": LLAMA,
    "Falcon": {**SIZES, **HEADS, **TOKENS, "new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon, one key": {**SIZES, **HEADS, **TOKENS, "new_decoder_architecture": False},
    "Falcon, many keys": {
        **SIZES,
        **HEADS,
        **TOKENS,
        "multi_query": False,
        "new_decoder_architecture": False,
    },
    "ModernBert": {**SIZES, **HEADS, **TOKENS, "cls_token_id": 1, "sep_token_id": 2},
}


@pytest.mark.parametrize("name", FUSED)
def test_rows_of_their_own_are_exactly_the_values_of_fused_projections(name: str) -> None:
    """With one token attention returns its value, so queries and keys have no gradient."""
    model = build(name.partition(",")[0], device="cpu", **FUSED[name]).eval()
    model(input_ids=torch.tensor([[7]])).logits.square().sum().backward()
    table = partition_model(model)
    params = dict(model.named_parameters())
    fused = [row for row in table if row.kind == "qkv"]
    assert len(fused) == 2
    for row in fused:
        cut, grad = row.partition, params[row.name].grad
        assert grad is not None
        sizes = cut.segment_elements() / (cut.reduce * cut.inner)
        single = cut.spread(sizes == 1, 0, cut.numel).view(row.shape)
        assert torch.equal(grad != 0, single)
        assert set(sizes.tolist()) == {1.0, 16.0}
