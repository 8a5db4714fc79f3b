"""Cases of `test_stages.py`: processes that have different parameters, or copies of the same."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from luma_core import LUMA, AdamMini, TurboAdam, checkpoint
from luma_core.errors import ConfigurationError, LumaError, StateMismatchError
from luma_core.optim.base import CompressedOptimizer
from luma_core.sharding import local_tensor

DOCUMENT = Path(__file__).parents[3] / "docs" / "pipeline-and-experts.md"
PROGRAM = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]

Params = list[tuple[str, nn.Parameter]]
Make = Callable[[Params], CompressedOptimizer]


def luma(params: Params, **options: Any) -> CompressedOptimizer:
    return LUMA(params or [{"params": []}], lr=1e-3, seed=0, **options)


def turbo(params: Params) -> CompressedOptimizer:
    return TurboAdam(params, lr=1e-3, seed=0)


def parameters(names: Iterable[str], shape: tuple[int, ...] = (64, 130)) -> Params:
    generator = torch.Generator().manual_seed(3)
    return [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name in names]


def stepped(
    params: Params, make: Make = luma, steps: int = 2, seed: int = 0
) -> CompressedOptimizer:
    optimizer = make(params)
    for step in range(steps):
        for name, param in params:
            generator = torch.Generator().manual_seed(step * 31 + sum(map(ord, name)) + seed)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return optimizer


def fields(optimizer: CompressedOptimizer) -> dict[str, Tensor]:
    return {
        f"{state.name}/{key}": value.clone()
        for state in optimizer.parameter_states()
        for key, value in state.fields.items()
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


OWN = {
    "stages": lambda rank: [f"layers.{2 * rank + index}.weight" for index in range(2)],
    "experts": lambda rank: ["router", *(f"experts.{rank}.{index}" for index in range(2 - rank))],
    "none": lambda rank: ["a", "b"] * (rank == 1),
    "orders": lambda rank: ["a", "b", "c"][:: 1 if rank else -1],
}


def documented(folder: Path) -> None:
    """The program of docs/pipeline-and-experts.md; each call goes on where the last stopped."""
    names: dict[str, Any] = {}
    exec(compile(PROGRAM, "pipeline-and-experts.md", "exec"), names)
    before = checkpoint.exists(folder / "page") and checkpoint.open(folder / "page")
    done = before.manifest.summary.step if before else 0
    optimizer = names["train"](folder / "page", names["layers"], 3)
    assert len(optimizer.parameter_names()) == 8 // dist.get_world_size()
    assert {state.step for state in optimizer.parameter_states()} == {done + 3}
    assert len(checkpoint.open(folder / "page").manifest.parameters) == 8


def own_parameters(kind: str, folder: Path) -> None:
    """What each process has is saved, and each gets what it asks for, by name."""
    rank = dist.get_rank()
    names = OWN[kind](rank)
    optimizer = stepped(parameters(names))
    manifest = checkpoint.save_sharded(folder / kind, optimizer=optimizer)
    everywhere = {name for other in range(2) for name in OWN[kind](other)}
    assert {entry.name for entry in manifest.parameters} == everywhere
    assert len(manifest.groups) == 1
    again = stepped(parameters(names), steps=1)
    checkpoint.load_sharded(folder / kind, optimizer=again)
    same(fields(again), fields(optimizer))
    whole = stepped(parameters(sorted(everywhere)), steps=1)
    checkpoint.load_sharded(folder / kind, optimizer=whole)
    found = fields(whole)
    same({name: found[name] for name in fields(optimizer)}, fields(optimizer))
    lacking = stepped(parameters(sorted(everywhere)[1:]), steps=1)
    before = fields(lacking)
    with pytest.raises(StateMismatchError, match=sorted(everywhere)[0]):
        checkpoint.load_sharded(folder / kind, optimizer=lacking)
    same(fields(lacking), before)


def groups_of_their_own(folder: Path) -> None:
    """Stages whose groups differ, and options of single parameters."""
    rank = dist.get_rank()
    params = parameters([f"layers.{rank}.q_proj.weight", f"layers.{rank}.norm"])

    def make(lr: float) -> CompressedOptimizer:
        groups = [{"params": [params[0]]}, {"params": [params[1]], "weight_decay": 0.0}]
        return AdamMini(groups[: 2 - rank], lr=lr, seed=0, n_heads=2)

    optimizer = stepped(params[: 2 - rank], lambda _: make(1e-3 * (1 + rank)))
    manifest = checkpoint.save_sharded(folder / "groups", optimizer=optimizer)
    assert [group["lr"] for group in manifest.groups] == [1e-3, 1e-3, 2e-3]
    again = make(0.5)
    checkpoint.load_sharded(folder / "groups", optimizer=again)
    assert again.param_groups[0]["lr"] == 1e-3 * (1 + rank)
    same(fields(again), fields(optimizer))


def weights_of_stages(folder: Path) -> None:
    """Weights by name; tied ones once; running statistics of the first process."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.ModuleDict({"shared": nn.BatchNorm1d(5), f"stage{rank}": nn.Linear(5, 5)})
    if rank == 0:
        model["head"] = nn.Linear(5, 5, bias=False)
        model["head"].weight = model["stage0"].weight
    with torch.no_grad():
        model["shared"].running_mean.fill_(rank + 1)
    optimizer = stepped([(n, p) for n, p in model.named_parameters() if "stage" in n])
    manifest = checkpoint.save_sharded(folder / "weights", optimizer=optimizer, model=model)
    assert manifest.aliases == {"head.weight": "stage0.weight"}
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    checkpoint.load_sharded(folder / "weights", optimizer=optimizer, model=model)
    expected["shared.running_mean"].fill_(1)
    same(dict(model.state_dict()), expected)
    with pytest.raises(ConfigurationError, match="model is None in rank 1"):
        checkpoint.save_sharded(
            folder / "weights", optimizer=optimizer, model=None if rank else model, overwrite=True
        )


def _differ(kind: str, rank: int) -> CompressedOptimizer:
    named = parameters(["same", "w"])
    if kind == "values":
        return stepped(named, seed=rank)
    if kind == "one value":
        optimizer = stepped(named)
        optimizer.state[named[1][1]]["exp_avg.codes"][-1, -1] += rank
        return optimizer
    if kind == "shape":
        return stepped([named[0], *parameters(["w"], (64, 130 + rank))])
    if kind == "dtype":
        dtype = [torch.float32, torch.bfloat16][rank]
        return stepped([named[0], ("w", nn.Parameter(named[1][1].detach().to(dtype)))])
    if kind == "codecs":
        groups = [{"params": [named[0]]}, {"params": [named[1]], "block_size": 128 >> rank}]
        return stepped(named, lambda _: luma(groups))
    if kind == "lr":
        groups = [{"params": [named[0]]}, {"params": [named[1]], "lr": 0.1 * (1 + rank)}]
        return stepped(named, lambda _: luma(groups))
    if kind == "step":
        optimizer = stepped(named)
        optimizer.state[named[1][1]]["step"] += rank
        return optimizer
    if kind == "noise":
        return stepped(named, lambda p: LUMA(p, lr=1e-3, seed=rank))
    if kind == "stepped":
        return stepped(named, steps=rank)
    if kind == "unnamed":
        return stepped(named[: 1 + rank], lambda p: luma([q for _, q in p]))
    assert kind == "algorithm"
    return stepped(named, [luma, lambda p: TurboAdam(p, seed=0)][rank])


DIFFERENCES = {
    "values": "'same' has other values in rank 0 than in rank 1",
    "one value": "'w' has other values in rank 0 than in rank 1",
    "shape": r"'w' differs.*shape is \[64, 130\] in rank 0 and \[64, 131\] in rank 1",
    "dtype": "'w' differs.*dtype is 'float32' in rank 0 and 'bfloat16' in rank 1",
    "codecs": "'w' differs.*codecs.* in rank 0 and .* in rank 1",
    "lr": "'w' differs.*'lr' is 0.1 in rank 0 and 0.2 in rank 1",
    "step": "'w' differs.*step is 2 in rank 0 and 3 in rank 1",
    "noise": "differs.*'seed' is 0 in rank 0 and 1 in rank 1",
    "stepped": "differs.*in rank 0 and .* in rank 1",
    "unnamed": "have no names",
    "algorithm": "'luma' in rank 0 and 'turbo_adam' in rank 1",
}


def what_differs_is_refused(folder: Path) -> None:
    """In every process, and before anything is written."""
    rank = dist.get_rank()
    url = folder / "differs"
    for kind, message in DIFFERENCES.items():
        optimizer = _differ(kind, rank)
        with pytest.raises(StateMismatchError, match=message):
            checkpoint.save_sharded(url, optimizer=optimizer)
        assert not url.exists(), kind
    optimizer = _differ("values", rank)
    checkpoint.save_sharded(url, optimizer=optimizer, replicas="first")
    checkpoint.load_sharded(url, optimizer=optimizer)
    same(fields(optimizer), fields(_differ("values", 0)))
    with pytest.raises(ConfigurationError, match="replicas='any'"):
        checkpoint.save_sharded(url, optimizer=optimizer, replicas="any")


def an_error_of_one_reaches_all(folder: Path) -> None:
    rank = dist.get_rank()
    optimizer = stepped(parameters([f"stage.{rank}"]))
    extra = {"x": object()} if rank else None
    with pytest.raises(LumaError, match="object"):
        checkpoint.save_sharded(folder / "error", optimizer=optimizer, extra=extra)
    checkpoint.save_sharded(folder / "error", optimizer=optimizer)
    place = folder / ("error" if rank else "nowhere")
    with pytest.raises(LumaError, match="nowhere"):
        checkpoint.load_sharded(place, optimizer=optimizer)


def a_part_is_loaded_and_all_are_told_alike(argument: str, folder: Path) -> None:
    """A new head, and a layer that is gone: of the same optimizer, or of another one."""
    mesh = init_device_mesh("cpu", (2,))

    def cut(params: Params) -> Params:
        return [
            (name, nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
            for name, param in params
        ]

    def trained(kind: Make, *params: Params) -> CompressedOptimizer:
        optimizer = kind(cut([item for some in params for item in some]))
        for name, param, _ in optimizer.parameters_by_name():
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            grad = torch.randn(param.shape, generator=generator)
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        optimizer.step()
        return optimizer

    place = folder / f"partial-{argument}"
    body = parameters(["body.0", "body.1"])
    saved = trained(luma, body, parameters(["gone"]))
    checkpoint.save_sharded(place, optimizer=saved)
    make = luma if argument == "same" else turbo
    optimizer = make(cut([*body, *parameters(["head"], (6, 130))]))
    with pytest.raises(StateMismatchError, match="head"):
        checkpoint.load_sharded(place, optimizer=optimizer)
    assert {state.step for state in optimizer.parameter_states()} <= {0}
    loaded = checkpoint.load_sharded(place, optimizer=optimizer, strict=False)
    report = loaded.optimizer
    assert (report.new, report.left_out) == (("head",), ("gone",))
    gathered: list[object] = [None, None]
    dist.all_gather_object(gathered, (report.new, report.missing, report.left_out))
    assert gathered[0] == gathered[1]
    states = {state.name: state for state in optimizer.parameter_states()}
    assert (states["body.0"].step, states["head"].step) == (1, 0)
    for name in ("body.0", "body.1"):
        want = saved.parameter_state(name)
        if argument == "same":
            assert all(
                torch.equal(local_tensor(value), local_tensor(states[name].fields[key]))
                for key, value in want.fields.items()
            )
        else:
            assert states[name].codecs != want.codecs
    for _, param, _ in optimizer.parameters_by_name():
        param.grad = distribute_tensor(torch.ones(param.shape), mesh, [Shard(0)])
    optimizer.step()


def counters_of_replicas(folder: Path) -> None:
    """Replicas count alike, and a count that was loaded by one of them is not lost."""
    params = parameters(["w"])
    optimizer = stepped(params)
    params[0][1].grad = torch.full((64, 130), torch.nan)
    optimizer.step()
    manifest = checkpoint.save_sharded(folder / "counts", optimizer=optimizer)
    count = manifest.parameters[0].nonfinite
    assert count == 128
    checkpoint.load_sharded(folder / "counts", optimizer=optimizer)
    assert optimizer.parameter_states()[0].nonfinite == count
