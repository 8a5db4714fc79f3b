"""One of several processes that step parts of parameters; compares them with whole ones.

``cut_worker.py RANK WORLD RENDEZVOUS``: all processes use one GPU unless each has its own. Whole
parameters are stepped twice, by two optimizers, which must leave equal bits too.
"""

import math
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.codecs import Partition
from luma_core.rules import collective
from luma_core.sharding import local_tensor, part_of

SHAPES = {
    "rows": (301, 512),
    "wide": (40, 2048),
    "ragged": (67, 300),
    "columns": (130, 256),
    "bias": (515,),
}
CUTS = {
    "rows": Partition.rows((301, 512), size=7),
    "wide": "row",
    "ragged": "row",
    "columns": "column",
    "bias": "element",
}
SCALED = ("rows", "wide", "bias")
"""Parameters whose first moment kernels take with scales too."""

MAKE = {
    "luma": lambda params, **options: LUMA(params, lr=0.1, **options),
    "luma fp32": lambda params, **options: LUMA(
        params, **{**options, "min_compress_elements": 1 << 30}
    ),
    "turbo": lambda params, **options: TurboAdam(params, lr=0.1, **options),
    "lamb": lambda params, **options: LAMB(params, lr=0.1, **options),
    "lamb fp32": lambda params, **options: LAMB(params, lr=0.1, codec="fp32", **options),
    "lamb bounded": lambda params, **options: LAMB(params, max_grad_norm=0.5, **options),
    "mini": lambda params, **options: AdamMini(params, lr=0.1, overrides=CUTS, **options),
    "mini fp8": lambda params, **options: AdamMini(
        params, lr=0.1, overrides={k: CUTS[k] for k in SCALED}, m_dtype="fp8", **options
    ),
}
COLLECTIVES = {"lamb": 1, "lamb fp32": 1, "lamb bounded": 2, "mini": 1, "mini fp8": 1}


def placed(value, mesh, rank):
    pieces = value.chunk(mesh.size())
    local = pieces[rank] if rank < len(pieces) else value[:0]
    stride = value.stride()
    return DTensor.from_local(
        local.clone(), mesh, [Shard(0)], run_check=False, shape=value.shape, stride=stride
    )


def differing(mine, whole):
    """Say which elements of a part differ from those of the whole, or nothing."""
    part = part_of(mine)
    expected = whole if part is None else whole[part.slices]
    places = (local_tensor(mine) != expected).flatten().nonzero().flatten()
    return f"{len(places)} of {expected.numel()} at {places[:6].tolist()}" if len(places) else ""


def check(kind, dtype, device, mesh, rank, steps=4):
    generator = torch.Generator().manual_seed(3)
    values = {
        key: torch.randn(shape, generator=generator).to(device, dtype)
        for key, shape in SHAPES.items()
        if kind != "mini fp8" or key in SCALED
    }
    whole, again = ({k: nn.Parameter(v.clone()) for k, v in values.items()} for _ in range(2))
    cut = {key: nn.Parameter(placed(value, mesh, rank)) for key, value in values.items()}
    options = {"seed": 5, "backend": "triton", "min_compress_elements": 1000}
    optimizers = [MAKE[kind](params.items(), **options) for params in (whole, again, cut)]
    calls, original = [], collective.all_reduce
    collective.all_reduce = lambda *arguments: [calls.append(arguments), original(*arguments)]
    for _ in range(steps):
        for key, value in values.items():
            grad = torch.randn(value.shape, generator=generator).to(device, dtype)
            whole[key].grad, again[key].grad = grad, grad.clone()
            # Kernels take copies of gradients that are not contiguous, or one process would.
            turned = grad.t().contiguous().t() if key == "ragged" else grad
            cut[key].grad = placed(turned, mesh, rank)
        for optimizer in optimizers:
            optimizer.step()
    collective.all_reduce = original
    assert optimizers[2]._stepper.all_fused, kind
    assert len(calls) == COLLECTIVES.get(kind, 0) * steps, (kind, len(calls))
    found = []
    for key, param in whole.items():
        assert math.isfinite(float(param.detach().sum())), (kind, key)
        others = ("again", again, optimizers[1]), ("cut", cut, optimizers[2])
        for name, other, optimizer in others:
            pairs = {"param": (other[key].detach(), param.detach())}
            for field, value in optimizers[0].state[param].items():
                pairs[field] = optimizer.state[other[key]][field], value
            said = {field: differing(*pair) for field, pair in pairs.items()}
            found += [f"{name} {key} {field}: {text}" for field, text in said.items() if text]
    print(kind, dtype, *(found or ["equal"]), sep="\n  ", flush=True)
    return not found


def check_captured(kind, device, mesh, rank, warm=3, steps=6):
    """Steps replayed from a graph, collectives and all, leave the bits of steps that are not."""
    generator = torch.Generator().manual_seed(3)
    values = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    options = {"seed": 5, "backend": "triton", "min_compress_elements": 1000, "capturable": True}
    sides = []
    for _ in range(2):
        params = {k: nn.Parameter(placed(v.to(device), mesh, rank)) for k, v in values.items()}
        for param in params.values():
            param.grad = torch.zeros_like(param)
        optimizer = MAKE[kind](params.items(), **options)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.1, device=device)
        sides.append((params, optimizer))

    def fill():
        for key, shape in SHAPES.items():
            grad = placed(torch.randn(shape, generator=generator).to(device), mesh, rank)
            for params, _ in sides:
                params[key].grad.to_local().copy_(grad.to_local())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            fill()
            for _, optimizer in sides:
                optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        sides[1][1].step()
    for _ in range(steps):
        fill()
        sides[0][1].step()
        graph.replay()
    torch.cuda.synchronize()
    (params, optimizer), (other, captured) = sides
    found = []
    for key, param in params.items():
        pairs = {"param": (other[key].detach(), param.detach())}
        pairs |= {f: (captured.state[other[key]][f], v) for f, v in optimizer.state[param].items()}
        for field, (mine, theirs) in pairs.items():
            if not torch.equal(local_tensor(mine), local_tensor(theirs)):
                found.append(f"{key} {field}")
        assert int(captured.state[other[key]]["step"]) == warm + steps, (kind, key)
    print(kind, "captured", *(found or ["equal"]), sep="\n  ", flush=True)
    return not found


def main():
    rank, world, rendezvous = sys.argv[1:]
    rank, world = int(rank), int(world)
    alone = torch.cuda.device_count() >= world
    torch.cuda.set_device(rank if alone else 0)
    device = torch.device("cuda", torch.cuda.current_device())
    distributed.init_process_group(
        "nccl" if alone else "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world
    )
    mesh = init_device_mesh("cuda", (world,))
    dtypes = torch.float32, torch.bfloat16
    equal = [check(kind, dtype, device, mesh, rank) for kind in MAKE for dtype in dtypes]
    equal += [check(kind, torch.float16, device, mesh, rank) for kind in ("lamb", "mini")]
    if alone:  # a graph captures NCCL's collectives, not gloo's
        equal += [check_captured(kind, device, mesh, rank) for kind in ("lamb bounded", "mini")]
    distributed.destroy_process_group()
    print("EQUAL" if all(equal) else "DIFFERENT")


if __name__ == "__main__":
    main()
