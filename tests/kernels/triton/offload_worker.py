"""One of several processes that train with offloaded state; compares it with state on the device.

``offload_worker.py RANK WORLD FOLDER [DEVICE]``: over NCCL where each process has a GPU of its own.
Else all share one, over gloo, which has not all that FSDP2 asks for on GPUs.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from luma_core import LAMB, LUMA, AdamMini, TurboAdam
from luma_core.optim import step_in_backward
from luma_core.sharding import local_tensor

STEPS = 5
BUFFER_BYTES = 4 << 20


def mini(params, **options):
    return AdamMini([(f"mlp.{name}", param) for name, param in params], **options)


CASES = [
    *[("fsdp2", kind, mode) for kind in (LUMA, TurboAdam) for mode in ("host", "disk")],
    *[("ddp", kind, "host") for kind in (LUMA, TurboAdam, LAMB, mini)],
    ("ddp", LUMA, "disk"),
    ("fsdp2", LUMA, "cpu-step"),
    ("ddp", LUMA, "cpu-step"),
]


def fully_sharded(net):
    for module in net:
        if isinstance(module, nn.Linear):
            fully_shard(module)
    fully_shard(net)
    return net


WRAP = {"fsdp2": fully_sharded, "ddp": DistributedDataParallel}


def trained(how, kind, device, rank, options):
    """Return the bits of parameters and state after some steps; with FSDP2 some in backward."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 1001), nn.GELU(), nn.Linear(1001, 3000), nn.Linear(3000, 64)]
    net = WRAP[how](nn.Sequential(*layers).to(device))
    named = list(net.named_parameters())
    optimizer = kind(named, seed=1, lr=1e-3, **options)
    handle = step_in_backward(net, optimizer) if how == "fsdp2" else None
    for step in range(STEPS):
        if handle is not None and step == 2:
            handle.remove()
        generator = torch.Generator(device).manual_seed(step * 7 + rank)
        x = torch.randn(32, 256, generator=generator, device=device)
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    entries = optimizer.state_dict()["state"]
    found = {}
    for index, (name, param) in enumerate(named):
        assert int(entries[index]["step"]) == STEPS, (name, entries[index]["step"])
        kept = {"param": param.detach(), **entries[index]}
        found |= {f"{name} {key}": local_tensor(value).cpu() for key, value in kept.items()}
    return {key: value.clone() for key, value in found.items()}


def check_replicas(found, device):
    """All processes have the same bits."""
    for key, value in found.items():
        first = value.to(torch.int32) if value.dtype == torch.int16 else value
        first = first.to(device)
        distributed.broadcast(first, 0)
        assert torch.equal(first.cpu().to(value.dtype), value), key


def check(how, kind, mode, device, rank, folder):
    away = {"offload": mode, "offload_buffer_bytes": BUFFER_BYTES}
    if mode == "disk":
        away["offload_directory"] = folder / f"{how}-{kind.__name__}-{rank}"
    resident = trained(how, kind, device, rank, {})
    found = trained(how, kind, device, rank, away)
    assert found.keys() == resident.keys()
    for key, value in found.items():
        if mode != "cpu-step":
            assert torch.equal(value, resident[key]), key
        elif key.endswith(" param"):
            # The CPU rounds otherwise than the GPU does.
            assert (value - resident[key]).abs().max() <= 1e-4, key
    if how == "ddp":
        check_replicas(found, device)


def main():
    rank, world, folder, *kind = sys.argv[1:]
    rank, world, folder = int(rank), int(world), Path(folder)
    device = torch.device(kind[0] if kind else "cuda")
    alone = device.type == "cuda" and torch.cuda.device_count() >= world
    if device.type == "cuda":
        torch.cuda.set_device(rank if alone else 0)
        device = torch.device("cuda", torch.cuda.current_device())
    distributed.init_process_group(
        "nccl" if alone else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
    )
    for how, build, mode in CASES:
        if how == "ddp" or alone or device.type == "cpu":
            print(how, build.__name__, mode, flush=True)
            check(how, build, mode, device, rank, folder)
    distributed.destroy_process_group()
    print("EQUAL", "nccl" if alone else "gloo")


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    main()
