"""A small GPT under DistributedDataParallel: ``torchrun --nproc-per-node 2 examples/ddp.py``."""

import sys

import torch
import torch.distributed as dist
from tiny import TinyGPT, batches, next_token_loss
from torch.nn.parallel import DistributedDataParallel

from luma_core import LUMA


def main(steps: int) -> None:
    """Train for some steps and print the loss."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    model = DistributedDataParallel(TinyGPT().to(device))
    # Replicas stay bit-identical if their noise is the same.
    optimizer = LUMA(model.named_parameters(), lr=3e-3)
    for step, tokens in enumerate(batches(steps, seed=dist.get_rank())):
        tokens = tokens.to(device)
        loss = next_token_loss(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step} loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
