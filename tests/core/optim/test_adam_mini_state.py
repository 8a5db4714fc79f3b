"""Adam-mini's state saved, loaded, converted, measured and exchanged with AdamW."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luma_core import LUMA, AdamMini, checkpoint, convert, stats
from luma_core.errors import CorruptCheckpointError, StateMismatchError

DOCUMENT = (Path(__file__).parents[3] / "docs" / "checkpoint-format.md").read_text()


class Model(nn.Module):
    """Heads, transposed experts, rows and elements."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 64)
        self.attn = nn.MultiheadAttention(64, 4)
        self.experts = nn.ParameterDict(
            {"gate_up_proj": torch.randn(2, 64, 48), "down_proj": torch.randn(2, 24, 64)}
        )


def build(m_dtype: str = "bf16", seed: int = 1, **options: object) -> AdamMini:
    torch.manual_seed(seed)
    model = Model()
    return AdamMini(model.named_parameters(), model=model, m_dtype=m_dtype, seed=seed, **options)


def step(optimizer: torch.optim.Optimizer, steps: int = 1, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator) * 0.01
        optimizer.step()


def trained(m_dtype: str = "bf16", steps: int = 3, **options: object) -> AdamMini:
    optimizer = build(m_dtype, **options)
    step(optimizer, steps)
    return optimizer


def assert_same_state(a: AdamMini, b: AdamMini) -> None:
    for x, y in zip(a.parameter_states(), b.parameter_states(), strict=True):
        assert (x.step, x.noise_key, x.codecs) == (y.step, y.noise_key, y.codecs)
        assert x.fields.keys() == y.fields.keys()
        assert all(torch.equal(x.fields[key], y.fields[key]) for key in x.fields)


M_DTYPES = ["fp32", "bf16", "fp8", "luma16"]


@pytest.mark.parametrize("m_dtype", M_DTYPES)
def test_a_checkpoint_restores_every_bit_and_the_next_step(tmp_path, m_dtype) -> None:
    optimizer = trained(m_dtype)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    other = build("bf16", seed=1)
    checkpoint.load(tmp_path / "c", optimizer=other)
    assert_same_state(optimizer, other)
    for a, b in zip(optimizer.parameters_by_name(), other.parameters_by_name(), strict=True):
        b[1].data.copy_(a[1].data)
    for one in (optimizer, other):
        step(one, 2, seed=5)
    assert_same_state(optimizer, other)
    for a, b in zip(optimizer.parameters_by_name(), other.parameters_by_name(), strict=True):
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("m_dtype", M_DTYPES)
def test_the_documented_program_decodes_every_value(tmp_path, m_dtype) -> None:
    program = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert program is not None
    names: dict = {}
    exec(compile(program[1], "checkpoint-format.md", "exec"), names)
    optimizer = trained(m_dtype)
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    found = names["read_moments"](tmp_path / "c")
    for state in optimizer.parameter_states():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert np.array_equal(found[state.name][moment], state.decode(moment).numpy())


def test_a_state_dict_travels_through_weights_only_loading() -> None:
    optimizer = trained()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = build()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(optimizer, other)


def test_parameters_without_names_take_the_state_by_position(tmp_path) -> None:
    optimizer = trained()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    for load, renamed in (
        (lambda other: checkpoint.load(tmp_path / "c", optimizer=other), False),
        (lambda other: other.load_state_dict(optimizer.state_dict()), True),
    ):
        torch.manual_seed(1)
        model = Model()
        other = AdamMini(list(model.parameters()), model=model)
        load(other)
        pairs = zip(optimizer.parameter_states(), other.parameter_states(), strict=True)
        for index, (x, y) in enumerate(pairs):
            assert y.name == (x.name if renamed else f"param.{index}")
            assert all(torch.equal(x.fields[key], y.fields[key]) for key in x.fields)
        step(other)


def test_names_in_another_order_keep_their_own_partition(tmp_path) -> None:
    optimizer = trained()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    torch.manual_seed(1)
    model = Model()
    other = AdamMini(reversed(list(model.named_parameters())), model=model)
    checkpoint.load(tmp_path / "c", optimizer=other)
    assert other.parameter_names() == optimizer.parameter_names()[::-1]
    for name in other.parameter_names():
        x, y = optimizer.parameter_state(name), other.parameter_state(name)
        assert x.codecs == y.codecs
        assert all(torch.equal(x.fields[key], y.fields[key]) for key in x.fields)


def test_a_checkpoint_brings_its_partition_with_it(tmp_path) -> None:
    saved = trained(overrides={"attn.in_proj_weight": "row"})
    checkpoint.save(tmp_path / "c", optimizer=saved)
    other = build()
    assert other.state_of(*other_parameter(other))["exp_avg_sq.value"].numel() == 4 + 4 + 64
    checkpoint.load(tmp_path / "c", optimizer=other)
    assert_same_state(saved, other)
    assert other.state_of(*other_parameter(other))["exp_avg_sq.value"].numel() == 192
    step(other)


def other_parameter(optimizer: AdamMini) -> tuple:
    return next(item for item in optimizer.parameters_by_name() if item[0] == "attn.in_proj_weight")


def test_state_of_another_optimizer_is_taken_by_its_meaning() -> None:
    mini = trained()
    luma = LUMA([(name, param) for name, param, _ in mini.parameters_by_name()], seed=0)
    luma.load_state_dict(mini.state_dict())
    for x, y in zip(mini.parameter_states(), luma.parameter_states(), strict=True):
        spread = x.decode("exp_avg_sq")
        torch.testing.assert_close(y.decode("exp_avg_sq"), spread, rtol=1e-3, atol=0)
        assert (y.step, y.noise_key) == (x.step, x.noise_key)
    other = build()
    other.load_state_dict(luma.state_dict())
    for x, y in zip(mini.parameter_states(), other.parameter_states(), strict=True):
        assert x.codecs == y.codecs
        means = y.decode("exp_avg_sq")
        torch.testing.assert_close(means, x.decode("exp_avg_sq"), rtol=1e-3, atol=0)


def test_a_partition_that_does_not_fit_is_refused() -> None:
    optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    codecs = state["param_groups"][0]["parameter_codecs"]
    codecs["embed.weight"] = codecs["attn.in_proj_weight"]
    before = optimizer.parameter_state("embed.weight").fields
    with pytest.raises(StateMismatchError, match=r"'embed.weight': Partition\("):
        optimizer.load_state_dict(state)
    assert optimizer.parameter_state("embed.weight").fields.keys() == before.keys()
    codecs["embed.weight"] = {"exp_avg_sq": {"name": "segment_mean", "partition": 3}}
    with pytest.raises(StateMismatchError, match="partition=3 must be an object"):
        optimizer.load_state_dict(state)


def test_a_manifest_whose_partition_does_not_fit_is_corrupt(tmp_path) -> None:
    checkpoint.save(tmp_path / "c", optimizer=trained())
    path = tmp_path / "c" / "luma.json"
    body = json.loads(path.read_text().replace('"length": 20', '"length": 21'))["manifest"]
    digest = hashlib.sha256(canonical(body)).hexdigest()
    path.write_bytes(canonical({"checksum": f"sha256:{digest}", "manifest": body}))
    with pytest.raises(CorruptCheckpointError, match=r"'embed.weight'.*cover 20 positions"):
        checkpoint.open(tmp_path / "c")


def canonical(value: object) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def test_a_live_optimizer_and_its_checkpoint_have_the_same_statistics(tmp_path) -> None:
    optimizer = trained("fp8")
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    with checkpoint.open(tmp_path / "c") as opened:
        found = stats.compute(opened)
        assert found == stats.compute(optimizer)
        assert stats.diff(opened, optimizer).identical
    moments = {moment.moment: moment for moment in found.total.moments}
    assert moments["exp_avg_sq"].codec == "fp32+segment_mean"
    assert moments["exp_avg_sq"].value.elements == found.total.elements
    assert moments["exp_avg"].scale is not None
    assert found.total.update.max == pytest.approx(
        max(float(row.max_update.max()) for row in optimizer.telemetry()) / 1e-3, rel=1e-5
    )


def test_conversion_to_adamw_spreads_each_second_moment(tmp_path) -> None:
    optimizer = trained()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    convert.convert(tmp_path / "c", tmp_path / "adamw.pt", to="adamw")
    saved = torch.load(tmp_path / "adamw.pt", weights_only=True)
    for entry, state in zip(saved["state"].values(), optimizer.parameter_states(), strict=True):
        assert torch.equal(entry["exp_avg_sq"], state.decode("exp_avg_sq"))
    adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(s.shape)) for s in
                               optimizer.parameter_states()])  # fmt: skip
    adamw.load_state_dict(saved)
    convert.convert(tmp_path / "c", tmp_path / "luma", to="luma")
    with checkpoint.open(tmp_path / "luma") as opened:
        assert opened.manifest.algorithm == "luma"
        assert all("parameter_codecs" not in group for group in opened.group_options())


@pytest.mark.parametrize("m_dtype", M_DTYPES)
def test_exported_state_comes_back_bit_for_bit(m_dtype) -> None:
    optimizer, other = trained(m_dtype), build(m_dtype)
    other.import_adamw_state(optimizer.export_adamw_state())
    for x, y in zip(optimizer.parameter_states(), other.parameter_states(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(x.decode(moment), y.decode(moment))


def test_imported_second_moments_are_the_means_of_their_segments() -> None:
    optimizer = build()
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    adamw = torch.optim.AdamW(params)
    step(adamw, 2)
    optimizer.import_adamw_state(adamw.state_dict())
    embed = params[0]
    torch.testing.assert_close(
        optimizer.state[embed]["exp_avg_sq.value"], adamw.state[embed]["exp_avg_sq"].mean(dim=1)
    )
