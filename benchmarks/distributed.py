"""Steps of sharded parameters: time against fused AdamW, size of the state, equality of bits.

``torchrun --nproc-per-node 2 -m benchmarks.distributed [--set llama1b] [--json F]``, on GPUs over
NCCL, or on CPUs over gloo. Parameters are sharded by ``fully_shard``; optimizers take turns on the
same gradients, a turn being ``--steps`` steps between two synchronisations. The time of a turn is
that of the slowest process, and results are medians over turns.

For equality, each optimizer also takes 20 steps from equal gradients with sharded and with whole
parameters, on small tensors whose rows the processes do not divide; the result names how many
elements of parameters and state differ. On CPUs those of LAMB and of Adam-mini with segments are
stepped in PyTorch when sharded, so there they are compared with ``backend="pytorch"``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from benchmarks.shapes import SETS, Shapes, parameter_names
from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.sharding import local_tensor, part_of

BASELINE = "torch AdamW fused"
Named = Iterable[tuple[str, nn.Parameter]]
Make = Callable[..., torch.optim.Optimizer]


def _adam_mini(named: Named, **options: Any) -> AdamMini:
    named = list(named)
    heads = {"n_heads": 12} if named[0][0] == "wte.weight" else {"n_heads": 32, "n_kv_heads": 8}
    return AdamMini(named, seed=1, **heads, **options)


OPTIMIZERS: dict[str, Make] = {
    BASELINE: lambda named: torch.optim.AdamW([p for _, p in named], fused=True),
    "LUMA": lambda named, **options: LUMA(named, seed=1, **options),
    "TurboAdam 5bit": lambda named, **options: TurboAdam(named, seed=1, **options),
    "AdamMini": _adam_mini,
    "LAMB": lambda named, **options: LAMB(named, seed=1, **options),
    "LAMB max_grad_norm": lambda named, **options: LAMB(
        named, seed=1, max_grad_norm=1.0, **options
    ),
}
REDUCING = ("AdamMini", "LAMB", "LAMB max_grad_norm")
IDENTITY_STEPS = 20
SMALL = {
    "embed_tokens.weight": (37, 64),
    "layers.0.q_proj.weight": (64, 130),
    "layers.0.up_proj.weight": (97, 512),
    "norm.weight": (5,),
}


def synchronize(device: torch.device) -> None:
    """Wait for the device, and for all processes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


def sharded_model(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a module with parameters of ``shapes``, sharded over all processes."""
    model = nn.Module()
    for name, shape in zip(parameter_names(shapes), shapes, strict=True):
        value = torch.randn(shape, device=device, dtype=dtype) * 0.02
        model.register_parameter(name.replace(".", "-"), nn.Parameter(value))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    sharded: nn.Module = fully_shard(model, mesh=mesh)
    for param in sharded.parameters():
        param.grad = param.detach() * 0.05
    return sharded


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the size of this process's part of the state."""
    tensors = [
        local_tensor(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def largest(value: float, device: torch.device) -> float:
    """Return the largest value of any process."""
    found = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def measure(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return the time, state and collectives of each optimizer."""
    model = sharded_model(SETS[options.set](), device, getattr(torch, options.dtype))
    named = [(name.replace("-", "."), param) for name, param in model.named_parameters()]
    made = {name: make(named) for name, make in OPTIMIZERS.items() if options.only in name}
    made.setdefault(BASELINE, OPTIMIZERS[BASELINE](named))
    times: dict[str, list[float]] = {name: [] for name in made}
    collectives = {}
    for name, optimizer in made.items():
        for _ in range(3):
            optimizer.step()
        with CommDebugMode() as counted:
            optimizer.step()
        collectives[name] = counted.get_total_counts()
    for _ in range(options.turns):
        for name, optimizer in made.items():
            optimizer.step()
            synchronize(device)
            began = time.perf_counter()
            for _ in range(options.steps):
                optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent = (time.perf_counter() - began) / options.steps
            times[name].append(largest(spent, device) * 1e3)
    base = statistics.median(times[BASELINE])
    return [
        {
            "optimizer": name,
            "step_ms": statistics.median(times[name]),
            "ratio": statistics.median(times[name]) / base,
            "state_bytes": int(largest(state_bytes(optimizer), device)),
            "collectives": collectives[name],
        }
        for name, optimizer in made.items()
    ]


def differing(name: str, device: torch.device) -> dict[str, Any]:
    """Return how many elements differ between a sharded and a whole run."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(7)
    values = {key: torch.randn(shape, generator=generator) for key, shape in SMALL.items()}
    options = {"backend": "pytorch"} if name in REDUCING and device.type == "cpu" else {}

    def place(value: Tensor) -> Tensor:
        return distribute_tensor(value.to(device), mesh, [Shard(0)], src_data_rank=None)

    whole = {key: nn.Parameter(value.to(device)) for key, value in values.items()}
    cut = {key: nn.Parameter(place(value)) for key, value in values.items()}
    optimizers = [OPTIMIZERS[name](params.items(), **options) for params in (whole, cut)]
    for _ in range(IDENTITY_STEPS):
        for key, value in values.items():
            grad = torch.randn(value.shape, generator=generator)
            whole[key].grad, cut[key].grad = grad.to(device), place(grad)
        for optimizer in optimizers:
            optimizer.step()
    elements = differ = 0
    for key, param in cut.items():
        pairs = [(param.detach(), whole[key].detach())]
        states = [found.state[p] for found, p in zip(optimizers, (whole[key], param), strict=True)]
        pairs += [(states[1][field], value) for field, value in states[0].items()]
        for mine, theirs in pairs:
            part = part_of(mine)
            expected = theirs if part is None else theirs[part.slices]
            elements += expected.numel()
            differ += int((local_tensor(mine) != expected).sum())
    found = torch.tensor([elements, differ], dtype=torch.int64, device=device)
    dist.all_reduce(found)
    return {"optimizer": name, "elements": int(found[0]), "differing": int(found[1])}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", choices=sorted(SETS), default="llama1b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", default="", help="part of the optimizers' names")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write what was found; every process calls it."""
    options = parse(arguments)
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    identity = [differing(name, device) for name in OPTIMIZERS if name != BASELINE]
    rows = measure(options, device)
    result = {
        "benchmark": "distributed",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processes": dist.get_world_size(),
        "torch": torch.__version__,
        "set": options.set,
        "dtype": options.dtype,
        "rows": rows,
        "identity": identity,
    }
    if dist.get_rank() == 0:
        for row in rows:
            print(
                f"{row['optimizer']:20} {row['step_ms']:9.3f} ms  {row['ratio']:5.2f}  "
                f"{row['state_bytes']:14,} B of state  {row['collectives']} collectives"
            )
        for item in identity:
            print(f"{item['optimizer']:20} {item['differing']} of {item['elements']:,} differ")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
