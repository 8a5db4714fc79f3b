"""``codec=`` chooses how moments are stored, in one way in every optimizer and group."""

import inspect
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from luma_core import LAMB, LUMA, AdamMini, AdamW, Muon, TurboAdam
from luma_core.codecs import BF16, FP32, Luma16M, Luma16V, codec_from_dict, codec_names
from luma_core.errors import ConfigurationError, UnknownCodecError
from luma_core.optim import CommonOptions, turbo_codecs
from luma_core.optim.common_options import CommonKeywords
from luma_core.optim.presets import PRESETS, codecs_of_kind, moment_kinds, preset_codecs
from tests.optimizers import CLASSES

every_class = pytest.mark.parametrize("build", CLASSES)
every_preset = pytest.mark.parametrize("preset", PRESETS)
BOTH = {"exp_avg": "signed", "exp_avg_sq": "square"}


def parameters(count: int = 1) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer.{i}.weight", nn.Parameter(torch.ones(64, 256))) for i in range(count)]


def names(optimizer: Any, group: int = 0) -> list[str]:
    return [config["name"] for config in optimizer.param_groups[group]["codecs"].values()]


@every_class
@every_preset
def test_every_optimizer_takes_every_preset(build: Any, preset: str) -> None:
    named = parameters()
    optimizer = build(named, lr=0.5, codec=preset)
    first = preset_codecs(preset, moment_kinds(build.rule), block_size=128)
    if build is Muon and preset == "8bit":
        assert optimizer.param_groups[0]["codecs"]["momentum_buffer"]["bits"] == 8
    elif build is AdamMini:
        assert optimizer.param_groups[0]["codecs"]["exp_avg"] == first["exp_avg"]
    else:
        assert optimizer.param_groups[0]["codecs"] == first
    assert "codec" not in optimizer.param_groups[0]
    for _ in range(2):
        named[0][1].grad = torch.ones(64, 256)
        optimizer.step()
    assert bool((named[0][1] < 0.9).all())


@every_class
def test_a_group_chooses_for_itself(build: Any) -> None:
    (a, b, c) = parameters(3)
    groups = [{"params": [a]}, {"params": [b], "codec": "bf16"}]
    optimizer = build(groups, codec="fp32")
    optimizer.add_param_group({"params": [c], "codec": "luma16", "block_size": 64})
    assert [names(optimizer, i)[0] for i in range(3)] == ["fp32", "bf16", "luma16_m"]
    moment = build.rule.moment_names[0]
    assert optimizer.param_groups[2]["codecs"][moment]["block_size"] == 64


@pytest.mark.parametrize("build", [AdamW, LUMA, TurboAdam, LAMB])
def test_codecs_are_given_by_moment_as_names_or_configurations(build: Any) -> None:
    mixed = {"exp_avg": "bf16", "exp_avg_sq": Luma16V(block_size=64).to_dict()}
    with pytest.raises(ConfigurationError, match="must all have one block_size"):
        build(parameters(), codec=mixed)
    optimizer = build(parameters(), codec={**mixed, "exp_avg": BF16(block_size=64).to_dict()})
    assert names(optimizer) == ["bf16", "luma16_v"]
    by_names = build(parameters(), codec={"exp_avg": "fp8_e4m3", "exp_avg_sq": "fp32"})
    assert names(by_names) == ["fp8_e4m3", "fp32"]


def test_the_plain_name_is_luma_and_turbo_adam_with_their_codecs() -> None:
    for build, same in (
        (LUMA, AdamW),
        (TurboAdam, partial(AdamW, codec="5bit")),
        (partial(TurboAdam, preset="8bit"), partial(AdamW, codec="8bit")),
    ):
        found = []
        for each in (build, same):
            (name, param), generator = parameters()[0], torch.Generator().manual_seed(1)
            optimizer = each([(name, param)], seed=3)
            for _ in range(3):
                param.grad = torch.randn(param.shape, generator=generator)
                optimizer.step()
            found.append((param.detach(), optimizer.group_options()))
        assert torch.equal(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]
    assert (LUMA.algorithm, TurboAdam.algorithm, AdamW.algorithm) == ("luma", "turbo_adam", "adamw")


def test_a_rule_of_one_moment_takes_presets_too() -> None:
    for preset in PRESETS:
        (config,) = preset_codecs(preset, {"momentum": "signed"}, block_size=128).values()
        assert codec_from_dict(config).signed


def test_presets_of_turbo_adam_are_its_keywords() -> None:
    for preset in ("5bit", "8bit", "16bit"):
        assert preset_codecs(preset, BOTH, block_size=64) == turbo_codecs(
            preset=preset, block_size=64
        )


def test_adam_mini_takes_a_codec_of_its_first_moment() -> None:
    for codec in ({"exp_avg": "fp8_e4m3"}, {"exp_avg": Luma16M(block_size=64).to_dict()}):
        AdamMini(parameters(), codec=codec)
    assert names(AdamMini(parameters(), codec="bf16", m_dtype="bf16")) == ["bf16", "fp32"]
    for build in (
        partial(AdamMini, codec="bf16", m_dtype="fp32"),
        lambda params: AdamMini([{"params": params, "codec": "fp32", "m_dtype": "bf16"}]),
    ):
        with pytest.raises(ConfigurationError, match="contradicts m_dtype="):
            build(parameters())
    with pytest.raises(ConfigurationError, match="must map each of 'exp_avg' to a codec"):
        AdamMini(parameters(), codec={"exp_avg": "bf16", "exp_avg_sq": "fp32"})


AGREEING: list[dict[str, Any]] = [
    {"codec": "8bit", "preset": "8bit"},
    {"codec": "8bit", "v_bits": 5, "v_floor": None},
    {"codec": "5bit", "block_size": 64},
]
CONTRADICTING: list[tuple[dict[str, Any], str]] = [
    ({"codec": "5bit", "preset": "8bit"}, "codec='5bit' contradicts preset='8bit'"),
    ({"codec": "8bit", "m_bits": 4, "v_bits": 5}, "contradicts m_bits=4, v_bits=5"),
    ({"codec": "luma16", "m_codec": "costate"}, "contradicts m_codec='costate'"),
]


@pytest.mark.parametrize("options", AGREEING, ids=str)
def test_keywords_that_say_the_same_may_stand_beside_a_codec(options: dict[str, Any]) -> None:
    TurboAdam(parameters(), **options)
    TurboAdam([{"params": parameters(), **options}])


@pytest.mark.parametrize(("options", "message"), CONTRADICTING, ids=str)
def test_contradictions_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TurboAdam(parameters(), **options)
    with pytest.raises(ConfigurationError, match=message):
        TurboAdam([{"params": parameters(), **options}])


def test_a_groups_keywords_replace_the_codec_of_the_optimizer() -> None:
    a, b = parameters(2)
    optimizer = TurboAdam([{"params": [a], "preset": "8bit"}, {"params": [b]}], codec="fp32")
    assert [names(optimizer, i) for i in range(2)] == [["table_m", "log_v"], ["fp32", "fp32"]]


@pytest.mark.parametrize("build", [AdamW, LUMA, LAMB, TurboAdam])
def test_other_block_sizes_than_that_of_a_configuration_are_errors(build: Any) -> None:
    codec = {"exp_avg": FP32().to_dict(), "exp_avg_sq": FP32().to_dict()}
    build(parameters(), codec=codec)
    with pytest.raises(ConfigurationError, match="block_size=64 contradicts"):
        build(parameters(), codec=codec, block_size=64)
    with pytest.raises(ConfigurationError, match="block_size=64 contradicts"):
        build([{"params": parameters(), "codec": codec, "block_size": 64}])
    with pytest.raises(ConfigurationError, match="contradicts its codecs="):
        build([{"params": parameters(), "codec": "bf16", "codecs": codec}])


WRONG: list[tuple[Any, type[Exception], str]] = [
    ("luma", UnknownCodecError, "'luma16', 'fp32', 'bf16', '5bit', '8bit', '16bit'"),
    (8, UnknownCodecError, "codec=8 must be one of"),
    ({"exp_avg": "bf16"}, ConfigurationError, "each of 'exp_avg', 'exp_avg_sq'"),
    ({"exp_avg": "luma16_m", "exp_avg_sq": 3}, ConfigurationError, "a codec's name, or what"),
    ({"exp_avg": "8bit", "exp_avg_sq": "fp32"}, UnknownCodecError, "is the name of no codec"),
    (
        {"exp_avg": "luma16_v", "exp_avg_sq": "fp32"},
        ConfigurationError,
        "its values have both signs",
    ),
    (
        {"exp_avg": "fp32", "exp_avg_sq": "luma16_m"},
        ConfigurationError,
        "updates are divided by it",
    ),
    (
        {"exp_avg": "fp32", "exp_avg_sq": "segment_mean"},
        ConfigurationError,
        "cannot store 'exp_avg_sq': each tensor",
    ),
]


@pytest.mark.parametrize(("codec", "error", "message"), WRONG, ids=str)
@pytest.mark.parametrize("build", [AdamW, LUMA, LAMB, TurboAdam])
def test_errors_say_what_may_be_given(
    build: Any, codec: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build(parameters(), codec=codec)
    assert "'luma16_" in str(caught.value)


def test_every_codec_stores_some_kind_of_moment_but_those_of_other_things() -> None:
    found = {*codecs_of_kind("signed"), *codecs_of_kind("square")}
    other_optimizers = {"plain", "raw", "raw_shaped"}
    assert found == {*codec_names()} - {"segment_mean"} - other_optimizers


def test_common_options_are_the_same_in_every_signature() -> None:
    tail = list(inspect.signature(CommonOptions).parameters.values())
    for build in CLASSES:
        own = list(inspect.signature(build).parameters.values())
        assert [(p.name, p.default, p.kind) for p in own[-len(tail) :]] == [
            (p.name, p.default, inspect.Parameter.KEYWORD_ONLY) for p in tail
        ]
        assert {"codec", "block_size"} <= {p.name for p in own}
        assert all(f"    {p.name}: " in (build.__doc__ or "") for p in own), build
    names = [field.name for field in fields(CommonOptions)]
    assert list(CommonKeywords.__annotations__) == names
    assert get_type_hints(CommonKeywords) == get_type_hints(CommonOptions)


@every_class
def test_unknown_keywords_are_type_errors_of_the_class(build: Any) -> None:
    with pytest.raises(TypeError, match=rf"{build.__name__}.__init__\(\) got an unexpected"):
        build(parameters(), weight_deccay=0.1)


def test_the_page_names_every_common_option() -> None:
    page = (Path(__file__).parents[3] / "docs/optimizers.md").read_text()
    named = set(re.findall(r"`(\w+)`", page.split("## Common options")[1]))
    assert {field.name for field in fields(CommonOptions)} <= named
