"""Cases of `test_fsdp1.py`: FSDP1's flat parameters, and their state under the model's names."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from luma_core import LAMB, LUMA, AdamMini, TurboAdam, checkpoint
from luma_core.errors import (
    ConfigurationError,
    StateMismatchError,
    UnsupportedParameterError,
)
from luma_core.optim import load_unflattened, step_in_backward, unflattened

BEFORE, AFTER = 4, 3
OPTIONS = {"lr": 1e-2, "seed": 1, "weight_decay": 0.1}
KINDS = {
    "luma": lambda p: LUMA(p, min_compress_elements=512, **OPTIONS),
    "float": lambda p: LUMA(p, min_compress_elements=1 << 30, **OPTIONS),
    "turbo": lambda p: TurboAdam(
        p, preset="8bit", min_compress_elements=512, min_m_compress_elements=512, **OPTIONS
    ),
}

warnings.filterwarnings("ignore", category=FutureWarning, message=".*ShardedTensor.*")


def _model(layout: str, dtype: torch.dtype = torch.float32) -> FSDP:
    """Wrap a small model as ``layout`` says: ``flat`` or ``orig``, and ``-mesh`` or ``-hybrid``."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(48, 70), nn.Tanh(), nn.LayerNorm(70), nn.Linear(70, 33))
    options = {}
    if layout.endswith("-mesh"):
        options["device_mesh"] = init_device_mesh("cpu", (dist.get_world_size(),))
    if layout.endswith("-hybrid"):
        shape = (2, dist.get_world_size() // 2)
        options["device_mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "shard"))
        options["sharding_strategy"] = ShardingStrategy.HYBRID_SHARD
    return FSDP(
        model.to(dtype),
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        device_id=torch.device("cpu"),
        use_orig_params=layout.startswith("orig"),
        **options,
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step * 7 + dist.get_rank())
        x = torch.randn(16, 48, generator=generator)
        x = x.to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _trained(layout: str, kind: str) -> tuple[FSDP, LUMA]:
    model = _model(layout)
    optimizer = KINDS[kind](model.named_parameters())
    _train(model, optimizer, 0, BEFORE)
    return model, optimizer


def _moments(optimizer: LUMA) -> dict[str, Tensor]:
    """Return moments by name, whole."""
    entries = optimizer.export_adamw_state()["state"]
    return {
        f"{name}/{moment}": whole(entries[index][moment])
        for index, name in enumerate(optimizer.parameter_names())
        for moment in ("exp_avg", "exp_avg_sq")
    }


def _close(found: dict[str, Tensor], expected: dict[str, Tensor], share: float) -> None:
    """Check the norm of what coding changed: parameters that lie side by side share blocks."""
    assert found.keys() == expected.keys()
    for moment in ("exp_avg", "exp_avg_sq"):
        names = [name for name in expected if name.endswith(f"/{moment}")]
        left, right = (
            torch.cat([some[name].view(-1) for name in names]) for some in (found, expected)
        )
        assert (left - right).norm() <= share * right.norm(), moment


def steps_like_adamw(layout: str, folder: Path) -> None:
    model, optimizer = _trained(layout, "float")
    other = _model(layout)
    adamw = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    _train(other, adamw, 0, BEFORE)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    options = StateDictOptions(full_state_dict=True)
    expected = get_optimizer_state_dict(other, adamw, options=options)["state"]
    named = unflattened(model, optimizer)
    assert {state.step for state in named.parameter_states()} == {BEFORE}
    assert sorted(named.parameter_names()) == sorted(
        ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    )
    found = _moments(named)
    if dist.get_rank() == 0:
        theirs = {key: expected[key.rpartition("/")[0]][key.rpartition("/")[2]] for key in found}
        _close(found, theirs, 2.0**-9)


def resumes_exactly(layout: str, folder: Path) -> None:
    model, optimizer = _trained(layout, "luma")
    again, other = _model(layout), None
    saved = optimizer.state_dict()
    with torch.no_grad():
        for a, b in zip(again.parameters(), model.parameters(), strict=True):
            a.copy_(b)
    other = KINDS["luma"](again.named_parameters())
    other.load_state_dict(saved)
    _train(model, optimizer, BEFORE, AFTER)
    _train(again, other, BEFORE, AFTER)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def save(case: str, folder: Path) -> None:
    layout, _, kind = case.partition(",")
    model, optimizer = _trained(layout, kind)
    named = unflattened(model, optimizer)
    checkpoint.save_sharded(folder / case, optimizer=named)
    found = _moments(named)
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{case}.pt")


def load(case: str, folder: Path) -> None:
    layout, _, kind = case.partition(",")
    model = _model("orig" if layout.startswith("flat") else "flat-mesh")
    optimizer = KINDS[kind](model.named_parameters())
    _train(model, optimizer, 50, 1)
    named = unflattened(model, optimizer)
    checkpoint.load_sharded(folder / case, optimizer=named)
    expected = torch.load(folder / f"{case}.pt")
    found = _moments(named)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    load_unflattened(model, optimizer, named)
    assert {s.step for s in optimizer.parameter_states() if 0 not in s.shape} == {BEFORE}
    share = {"float": 0.0, "luma": 2.0**-9, "turbo": 2.0**-3}[kind]
    _close(_moments(unflattened(model, optimizer)), expected, share)
    _train(model, optimizer, BEFORE, AFTER)


def bfloat16_keeps_float32_moments(folder: Path) -> None:
    model = _model("flat", torch.bfloat16)
    optimizer = KINDS["float"](model.named_parameters())
    _train(model, optimizer, 0, BEFORE)
    named = unflattened(model, optimizer)
    assert {state.dtype for state in named.parameter_states()} == {"bfloat16"}
    before = _moments(named)
    load_unflattened(model, optimizer, named)
    after = _moments(unflattened(model, optimizer))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def what_cannot_work_is_refused(folder: Path) -> None:
    model = _model("flat")
    for kind in (LAMB, AdamMini):
        with pytest.raises(UnsupportedParameterError, match=r"fully_shard"):
            kind(model.named_parameters())
    optimizer = KINDS["luma"](model.named_parameters())
    with pytest.raises(ConfigurationError, match="FullyShardedDataParallel"):
        step_in_backward(model, optimizer)
    with pytest.raises(UnsupportedParameterError, match="unflattened"):
        checkpoint.save_sharded(folder / "flat", optimizer=optimizer)
    with pytest.raises(ConfigurationError, match="it must be a FullyShardedDataParallel"):
        unflattened(model.module, optimizer)
    other = _model("flat")
    with pytest.raises(ConfigurationError, match="not one that the model's"):
        unflattened(other, optimizer)
    alone = FSDP(
        nn.Linear(3, 3),
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        process_group=(dist.group.WORLD, dist.new_group([dist.get_rank()])),
    )
    with pytest.raises(ConfigurationError, match="no device_mesh"):
        unflattened(alone, KINDS["luma"](alone.named_parameters()))
    named = LUMA([("strange", nn.Parameter(torch.zeros(3)))])
    with pytest.raises(StateMismatchError, match="'strange'"):
        load_unflattened(model, optimizer, named)
