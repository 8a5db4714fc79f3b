"""One rank of sharded training on the CPU.

Arguments: kind (``fsdp1``, ``flat`` or ``fsdp2``), what to do, rank, number of ranks, port, folder.
``train`` takes two steps, saves weights and optimizer state, and tells the weights after a third.
``resume`` loads what was converted, takes that step, and tells the weights.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard

WHOLE = StateDictOptions(full_state_dict=True)


def make(kind):
    torch.manual_seed(0)
    # Sizes that two ranks cannot share evenly.
    model = nn.Sequential(nn.Linear(41, 7), nn.ReLU(), nn.Linear(7, 5))
    if kind == "fsdp2":
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    else:
        model = FSDP(model, device_id=torch.device("cpu"), use_orig_params=kind == "fsdp1")
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model, optimizer, index):
    seed = 10 * index + dist.get_rank()
    x = torch.randn(4, 41, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def saved(content, path):
    if dist.get_rank() == 0:
        torch.save(content, path)
    dist.barrier()


def train(kind, folder):
    model, optimizer = make(kind)
    for index in range(2):
        step(model, optimizer, index)
    saved(get_model_state_dict(model, options=WHOLE), folder / "weights.pt")
    saved(get_optimizer_state_dict(model, optimizer, options=WHOLE), folder / "whole.pt")
    if kind == "flat":
        saved(FSDP.full_optim_state_dict(model, optimizer), folder / "fsdp1.pt")
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / "dcp")
    step(model, optimizer, 2)
    saved(get_model_state_dict(model, options=WHOLE), folder / "after.pt")


def resume(kind, folder):
    for name in ("whole", "fsdp1", "dcp"):
        source = folder / f"converted-{name}"
        if not source.exists():
            continue
        model, optimizer = make(kind)
        weights = torch.load(folder / "weights.pt", weights_only=True)
        set_model_state_dict(model, weights, options=WHOLE)
        if name == "dcp":
            step(model, optimizer, 5)
            set_model_state_dict(model, weights, options=WHOLE)
            state = {"optim": get_optimizer_state_dict(model, optimizer)}
            dcp.load(state, checkpoint_id=source)
            set_optimizer_state_dict(model, optimizer, state["optim"])
        elif name == "fsdp1":
            whole = torch.load(source, weights_only=True)
            optimizer.load_state_dict(FSDP.optim_state_dict_to_load(model, optimizer, whole))
        else:
            whole = torch.load(source, weights_only=True)
            set_optimizer_state_dict(model, optimizer, whole, options=WHOLE)
        step(model, optimizer, 2)
        saved(get_model_state_dict(model, options=WHOLE), folder / f"after-{name}.pt")


def main(kind: str, task: str, rank: int, ranks: int, port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    {"train": train, "resume": resume}[task](kind, Path(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6])
