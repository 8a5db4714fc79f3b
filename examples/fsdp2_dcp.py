"""FSDP2, resumed through DCP: ``torchrun --nproc-per-node 2 examples/fsdp2_dcp.py FOLDER``.

Run it again, on any number of processes, and it goes on where it stopped.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny import TinyGPT, batches, next_token_loss
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from luma_core import LUMA


def content(model: nn.Module, optimizer: LUMA) -> dict[str, object]:
    """Return what is saved."""
    return {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
    }


def main(folder: Path, steps: int) -> None:
    """Train for some steps more, and save."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
    torch.manual_seed(0)
    model = TinyGPT().to("cuda" if torch.cuda.is_available() else "cpu")
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = LUMA(model.named_parameters(), lr=3e-3, seed=0)
    optimizer.init_state()
    if (folder / ".metadata").exists():
        saved = content(model, optimizer)
        dcp.load(saved, checkpoint_id=folder)
        set_model_state_dict(model, saved["model"])
        set_optimizer_state_dict(model, optimizer, saved["optim"])
    done = optimizer.parameter_states()[0].step
    for step, tokens in enumerate(batches(steps, seed=dist.get_rank() + done), start=done):
        tokens = tokens.to(next(model.parameters()).device)
        loss = next_token_loss(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step} loss {loss.item():.4f}")
    dcp.save(content(model, optimizer), checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
