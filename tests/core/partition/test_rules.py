"""What shares one second moment: by modules, by names, by a user's word, and when nothing tells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luma_core.errors import ConfigurationError
from luma_core.partition import Partition, partition_model, partition_names


class Block(nn.Module):
    """A layer of Llama's kind with grouped queries and a head_dim that is not dim / n_heads."""

    def __init__(self, dim: int = 48, n_heads: int = 4, n_kv_heads: int = 2, head_dim: int = 16):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=True)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=False)


def runs(partition: Partition) -> tuple:
    view = (partition.outer, partition.reduce, partition.length, partition.inner)
    return view, partition.runs


def test_heads_come_from_the_module_around_a_projection() -> None:
    table = partition_model(nn.Sequential(Block()))
    assert runs(table["0.wq.weight"].partition) == ((1, 1, 64, 48), ((4, 16),))
    assert runs(table["0.wk.weight"].partition) == ((1, 1, 32, 48), ((2, 16),))
    assert runs(table["0.wv.weight"].partition) == ((1, 1, 32, 48), ((32, 1),))
    assert runs(table["0.wo.weight"].partition) == ((1, 1, 48, 64), ((48, 1),))
    assert table["0.wk.bias"].partition.elementwise
    assert [table[name].per for name in ("0.wq.weight", "0.wv.weight")] == ["head", "row"]


@pytest.mark.parametrize(
    "options", [{"n_heads": 4}, {"head_dim": 16}, {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16}]
)
def test_names_and_head_counts_say_the_same(options) -> None:
    by_names = partition_names(Block().named_parameters(), **options)
    by_modules = partition_model(Block())
    assert [row.partition for row in by_names] == [row.partition for row in by_modules]


def test_other_modules() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(11, 6),
            "conv": nn.Conv2d(4, 8, 3),
            "up": nn.ConvTranspose2d(6, 8, 3, groups=2),
            "norm": nn.LayerNorm((3, 5)),
            "mlp": nn.Sequential(nn.Linear(6, 7)),
            "tokens": nn.ParameterList([torch.zeros(1, 5, 6)]),
        }
    )
    table = partition_model(model)
    assert runs(table["embed.weight"].partition) == ((1, 1, 11, 6), ((11, 1),))
    assert runs(table["conv.weight"].partition) == ((1, 1, 8, 36), ((8, 1),))
    assert runs(table["up.weight"].partition) == ((2, 3, 4, 9), ((4, 1),))
    assert table["norm.weight"].partition.elementwise
    assert runs(table["mlp.0.weight"].partition) == ((1, 1, 7, 6), ((7, 1),))
    assert runs(table["tokens.0"].partition) == ((1, 1, 5, 6), ((5, 1),))


def test_multihead_attention_of_torch() -> None:
    fused = partition_model(nn.MultiheadAttention(24, 3))
    assert runs(fused["in_proj_weight"].partition) == ((1, 1, 72, 24), ((3, 8), (3, 8), (24, 1)))
    apart = partition_model(nn.MultiheadAttention(24, 3, kdim=10, vdim=12))
    assert apart["q_proj_weight"].partition.runs == ((3, 8),)
    assert apart["k_proj_weight"].partition.runs == ((3, 8),)
    assert apart["v_proj_weight"].partition.runs == ((24, 1),)


FUSED = {"attn.qkv_proj.weight": (128, 64)}
"""4 query heads and 2 of keys and values, of 16 rows each."""


@pytest.mark.parametrize(
    "options", [{"n_heads": 4, "n_kv_heads": 2}, {"n_heads": 4, "head_dim": 16}]
)
def test_fused_projections_with_grouped_queries(options) -> None:
    row = partition_names(FUSED.items(), **options)["attn.qkv_proj.weight"]
    assert runs(row.partition) == ((1, 1, 128, 64), ((4, 16), (2, 16), (32, 1)))


def test_rows_ordered_by_key_head() -> None:
    table = partition_names(
        {"attention.query_key_value.weight": (128, 64)}.items(), n_heads=4, n_kv_heads=2
    )
    (row,) = table
    assert runs(row.partition) == ((2, 1, 64, 64), ((2, 16), (1, 16), (16, 1)))


def test_gpt2_is_told_from_its_descendants_by_the_shape_of_c_attn() -> None:
    def shapes(flip: bool) -> list[tuple[str, tuple[int, ...]]]:
        plain = {"attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "mlp.c_fc": (256, 64)}
        return [
            (f"h.0.{name}.weight", shape[::-1] if flip else shape) for name, shape in plain.items()
        ]

    gpt2, nano = (partition_names(shapes(flip), n_heads=4) for flip in (True, False))
    qkv = ((4, 16), (4, 16), (64, 1))
    assert runs(gpt2["h.0.attn.c_attn.weight"].partition) == ((1, 64, 192, 1), qkv)
    assert runs(nano["h.0.attn.c_attn.weight"].partition) == ((1, 1, 192, 64), qkv)
    assert runs(gpt2["h.0.mlp.c_fc.weight"].partition) == ((1, 64, 256, 1), ((256, 1),))
    assert runs(gpt2["h.0.attn.c_proj.weight"].partition) == ((1, 64, 64, 1), ((64, 1),))
    assert runs(nano["h.0.mlp.c_fc.weight"].partition) == ((1, 1, 256, 64), ((256, 1),))


def test_experts_of_either_layout() -> None:
    normal = {"mlp.experts.gate_up_proj": (3, 40, 16), "mlp.experts.down_proj": (3, 16, 20)}
    turned = {"mlp.experts.gate_up_proj": (3, 16, 40), "mlp.experts.down_proj": (3, 20, 16)}
    single = {"mlp.experts.0.w1.weight": (20, 16)}
    table = partition_names(normal.items())
    assert runs(table["mlp.experts.gate_up_proj"].partition) == ((3, 1, 40, 16), ((40, 1),))
    table = partition_names(turned.items())
    assert runs(table["mlp.experts.gate_up_proj"].partition) == ((3, 16, 40, 1), ((40, 1),))
    assert runs(table["mlp.experts.down_proj"].partition) == ((3, 20, 16, 1), ((16, 1),))
    assert partition_names(single.items())["mlp.experts.0.w1.weight"].kind == "expert"


def test_names_of_wrapped_models_are_seen_through() -> None:
    table = partition_names([("module._orig_mod.attn.q_proj.base_layer.weight", (8, 4))], n_heads=2)
    assert table.rows[0].kind == "query"
    assert table.rows[0].name == "module._orig_mod.attn.q_proj.base_layer.weight"


def test_overrides_decide_first_and_in_order() -> None:
    table = partition_model(
        nn.Sequential(Block()),
        overrides={
            "*.wq.*": "row",
            "*.wo.weight": "whole",
            "*.wk.bias": Partition(1, 1, 32, 1, ((2, 16),)),
            "*.w?.weight": "column",
        },
    )
    assert table["0.wq.weight"].partition.segments == 64
    assert table["0.wo.weight"].partition.segments == 1
    assert table["0.wk.bias"].partition.segments == 2
    assert table["0.wv.weight"].partition.segments == 48
    assert table["0.wq.weight"].why == "overrides['*.wq.*']"
    by_head = partition_model(Block(), overrides={"wv.weight": "head"})
    assert by_head["wv.weight"].partition.runs == ((2, 16),)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ({"a.q_proj.weight": (64, 64)}, {}, r"'a.q_proj.weight' of shape \[64, 64\].*n_heads is m"),
        ({"a.k_proj.weight": (64, 64)}, {}, "n_heads is missing"),
        ({"a.qkv.weight": (192, 64)}, {}, "n_heads is missing"),
        # 96 divides by 3 * 4, but a third is not as wide as the input: keys may be fewer.
        ({"a.qkv.weight": (96, 64)}, {"n_heads": 4}, "n_kv_heads is missing"),
        ({"a.q_proj.weight": (64, 64)}, {"n_heads": 5}, "multiple of n_heads=5"),
        ({"a.q_proj.weight": (64, 64)}, {"head_dim": 24}, "multiple of head_dim=24"),
        ({"a.q_proj.weight": (64, 64)}, {"head_dim": 8, "n_heads": 4}, "n_heads=4 heads of 8 make"),
        ({"a.qkv.weight": (192, 64)}, {"n_heads": 4, "n_kv_heads": 3}, "do not fit"),
        ({"a.query_key_value.weight": (160, 64)}, {"n_heads": 4, "n_kv_heads": 3}, "form 3 groups"),
        ({"a.q_proj.weight": (64, 64)}, {"n_heads": 0}, "n_heads=0 must be a positive integer"),
        ({"a.w": (4, 4)}, {"overrides": {"a.w": "rows"}}, r"overrides\['a.w'\] is 'rows'; it must"),
        ({"a.w": (4, 4)}, {"overrides": {"b*": "row"}}, r"overrides\['b\*'\] matches none"),
        ({"a.w": (4,)}, {"overrides": {"a.w": "head"}}, "is no matrix"),
        ({"a.w": (4, 4)}, {"overrides": {"a.w": Partition.rows((4, 5))}}, "of 20 elements"),
    ],
)
def test_what_cannot_be_known_or_cannot_fit_is_a_clear_error(shapes, options, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        partition_names(shapes.items(), **options)


def test_the_table_prints_every_parameter_and_the_totals() -> None:
    table = partition_model(nn.Sequential(Block()))
    text = str(table)
    assert all(row.name in text for row in table)
    assert text.splitlines()[-1] == (
        f"5 parameters of {table.elements:,} elements, {table.segments:,} values of v"
    )
    assert table.segments == 4 + 2 + 32 + 32 + 48
    assert table.to_dict()["parameters"][0]["partition"]["runs"] == [[4, 16]]
