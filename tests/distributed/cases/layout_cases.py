"""Cases of `test_sharded_steps.py` for other shardings than rows, and for state in and out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import SHAPES, Run, assert_same, gradient, mesh_of_world, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from luma_core import LUMA, checkpoint
from luma_core.errors import (
    BackendUnavailableError,
    ConfigurationError,
    NonFiniteGradientError,
    UnsupportedParameterError,
)
from luma_core.optim import GatheredState
from luma_core.optim.step.collecting import LocalTensors
from luma_core.rules import collective
from luma_core.rules.newton_schulz import Orthogonalization
from luma_core.sharding import local_tensor
from luma_core.stats import compute

COLUMNS = {"layers.0.up_proj.weight": (70, 512), "layers.0.down_proj.weight": (33, 4, 128)}
"""Rows whose quarters, and halves, are whole blocks."""


def columns_same_bits(kind: str, folder: Path) -> None:
    sharded = Run(kind, mesh_of_world(), [Shard(1)], COLUMNS).steps(20)
    assert_same(sharded.tensors(), Run(kind, shapes=COLUMNS).steps(20).tensors())


def columns_close(kind: str, folder: Path) -> None:
    sharded = Run(kind, mesh_of_world(), [Shard(1)], COLUMNS).steps(5).tensors()
    expected = Run(kind, shapes=COLUMNS).steps(5).tensors()
    for name in COLUMNS:
        torch.testing.assert_close(sharded[name], expected[name], rtol=1e-6, atol=1e-7)


def two_dimensions_same_bits(kind: str, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    expected = Run(kind, shapes=COLUMNS).steps(20).tensors()
    for placements in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Replicate()]):
        assert_same(Run(kind, mesh, placements, COLUMNS).steps(20).tensors(), expected)


def cut_blocks_train(folder: Path) -> None:
    shapes = {"long": (70_001,), "layers.0.odd.weight": (50, 301)}
    for placements in ([Shard(0)], [Shard(1)]):
        sharded = Run("luma", mesh_of_world(), placements, shapes).steps(20).tensors()
        expected = Run("luma", shapes=shapes).steps(20).tensors()
        for name in shapes:
            close = torch.isclose(sharded[name], expected[name], rtol=1e-2, atol=1e-3)
            assert close.float().mean() > 0.99, name


def fully_shard_is_the_whole(folder: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(48, 70), nn.Tanh(), nn.LayerNorm(70), nn.Linear(70, 33))

    plain, model = make(), make()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    own = LUMA(model.named_parameters(), lr=1e-2, seed=1)
    other = LUMA(plain.named_parameters(), lr=1e-2, seed=1)
    for step in range(10):
        generator = torch.Generator().manual_seed(step * 7 + torch.distributed.get_rank())
        model(torch.randn(16, 48, generator=generator)).square().mean().backward()
        for (_, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            q.grad = p.grad.full_tensor()
        own.step()
        other.step()
        own.zero_grad()
    for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(whole(p.detach()), q), name


def state_from_whole(kind: str, folder: Path) -> None:
    plain, sharded = Run(kind).steps(3), Run(kind, mesh_of_world()).steps(1)
    sharded.optimizer.load_parameter_states(
        plain.optimizer.group_options(), plain.optimizer.parameter_states()
    )
    found, expected = sharded.tensors(), plain.tensors()
    assert_same(
        {k: v for k, v in found.items() if k not in SHAPES},
        {k: v for k, v in expected.items() if k not in SHAPES},
    )
    with torch.no_grad():
        for name, param in sharded.params.items():
            param.copy_(sharded._place(plain.params[name].detach()))
    sharded.done = plain.done
    assert_same(sharded.steps(5).tensors(), plain.steps(5).tensors())


def adamw_state_round_trip(kind: str, folder: Path) -> None:
    plain, sharded = Run(kind).steps(3), Run(kind, mesh_of_world()).steps(3)
    expected, found = (run.optimizer.export_adamw_state() for run in (plain, sharded))
    for index, entry in expected["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(whole(found["state"][index][moment]), entry[moment])
    other = Run(kind, mesh_of_world()).steps(1)
    other.optimizer.import_adamw_state(found)
    again = other.optimizer.export_adamw_state()
    for index, entry in expected["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(whole(again["state"][index][moment]), entry[moment])


def nonfinite_raises_everywhere(folder: Path) -> None:
    run = Run("luma_raise", mesh_of_world()).steps(1)
    before = run.tensors()
    param = run.params["layers.0.up_proj.weight"]
    bad = gradient("x", torch.empty(SHAPES["layers.0.up_proj.weight"]), 1)
    bad[0, 0] = torch.nan
    param.grad = run._place(bad)
    with pytest.raises(NonFiniteGradientError, match="up_proj"):
        run.optimizer.step()
    assert_same(run.tensors(), before)
    mini = Run("mini", mesh_of_world()).steps(1)
    with pytest.raises(ConfigurationError, match="save_sharded"):
        checkpoint.save(folder / "alone", optimizer=mini.optimizer)


def statistics_are_those_of_the_whole(kind: str, folder: Path) -> None:
    plain, sharded = Run(kind).steps(3), Run(kind, mesh_of_world()).steps(3)
    assert compute(GatheredState(sharded.optimizer)) == compute(plain.optimizer)
    if kind == "mini":
        pairs = zip(sharded.optimizer.telemetry(), plain.optimizer.telemetry(), strict=True)
        for found, expected in pairs:
            assert found.name == expected.name
            for field in ("max_update", "max_first", "second"):
                assert torch.equal(getattr(found, field), getattr(expected, field)), field


def nonfinite_counts_add_up(folder: Path) -> None:
    run = Run("luma", mesh_of_world()).steps(1)
    name = "layers.0.up_proj.weight"
    bad = torch.zeros(SHAPES[name])
    bad[::7, 0] = torch.nan
    run.params[name].grad = run._place(bad)
    run.optimizer.step()
    state = GatheredState(run.optimizer).parameter_state(name)
    assert state.nonfinite == len(bad[::7])


def wrong_backend_is_refused(folder: Path) -> None:
    run = Run("luma", mesh_of_world(), [Shard(1)], COLUMNS)
    run.optimizer.backend = "native"
    with pytest.raises(BackendUnavailableError, match=r"Shard\(dim=1\)"):
        run.steps(1)


def segments_cut_along_inner_dimensions_are_refused(folder: Path) -> None:
    shapes = {"layers.0.experts": (2, 3, 64)}
    run = Run("mini", mesh_of_world(), [Shard(2)], shapes)
    before = {name: value.clone() for name, value in run.tensors().items()}
    with pytest.raises(UnsupportedParameterError, match="cut along dimension 2"):
        run.steps(1)
    assert_same(run.tensors(), before)


def strides_of_gradients_do_not_matter(folder: Path) -> None:
    value, mesh = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)), mesh_of_world()
    results = []
    for turned in (False, True):
        param = nn.Parameter(distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None))
        optimizer = LUMA([("p", param)], lr=0.1, seed=3, min_compress_elements=0)
        local = local_tensor(distribute_tensor(value.sin(), mesh, [Shard(0)], src_data_rank=None))
        if turned:
            local = local.t().contiguous().t()
        param.grad = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.stride()
        )
        tensors = LocalTensors()
        grad = tensors.of(param).grad
        assert grad is not None
        assert grad.is_contiguous()
        # Of 5 rows the first process of 4 has 2; less than 2 are contiguous either way.
        assert tensors.copied == (turned and len(local) > 1)
        optimizer.step()
        results.append(local_tensor(param).detach().clone())
    assert torch.equal(*results)


def sums_of_fused_steps_add_up(folder: Path) -> None:
    from luma_kernels.triton.runtime.exchange import Sums, adding

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    groups = (mesh_of_world().get_group(),)
    buckets = []
    kinds = (torch.int64, True), (torch.float64, True), (torch.int64, False)
    for kind, (dtype, cut) in enumerate(kinds):
        values = torch.arange(5).to(dtype) * 10**rank
        where = groups if cut else ()
        places = [SimpleNamespace(place=9 - 2 * n - kind, groups=where) for n in range(2)]
        buckets.append((Sums(values, [2, 3]), places))
    calls, reduce = [], collective.all_reduce

    def counted(*arguments: object) -> None:
        calls.append(arguments)
        reduce(*arguments)

    collective.all_reduce = counted
    # What kinds of tensors processes have, and in which order, may differ.
    add = adding(buckets[:: 1 if rank % 2 else -1])
    assert add is not None
    add()
    collective.all_reduce = reduce
    assert len(calls) == 2
    total = sum(10**other for other in range(world))
    for (sums, _), factor in zip(buckets, (total, total, 10**rank), strict=True):
        assert sums.values.tolist() == [factor * n for n in range(5)]
    assert adding(buckets[2:]) is None


def matrices_move_in_16_bits_to_balanced_owners(folder: Path) -> None:
    shapes = {f"layers.{index}.up_proj.weight": (48, 64) for index in range(8)}
    run, sent, owned = Run("muon", mesh_of_world(), shapes=shapes), [], []
    exchange, apply = torch.distributed.all_to_all_single, Orthogonalization.apply

    def counted(output, values, *args, **options):
        sent.append(values.numel())
        return exchange(output, values, *args, **options)

    def noted(self, values, beside):
        owned.append(len(values))
        return apply(self, values, beside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_to_all_single", counted)
        patch.setattr(Orthogonalization, "apply", noted)
        run.steps(1)
    world, elements = torch.distributed.get_world_size(), 8 * 48 * 64
    assert sent == [2 * elements // world] * 2
    assert owned == [8 // world]
