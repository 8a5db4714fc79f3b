"""Muon for matrices, AdamW for all else: ``python examples/muon.py FOLDER``."""

import sys
from pathlib import Path

import torch
from tiny import TinyGPT, batches, next_token_loss

from luma_core import Muon
from luma_core.checkpoint import save


def main(folder: Path, steps: int) -> None:
    """Train for some steps, and save."""
    torch.manual_seed(0)
    model = TinyGPT()
    optimizer = Muon(model.named_parameters(), lr=5e-3, codec="luma16")
    print(optimizer.table)
    for step, tokens in enumerate(batches(steps, seed=0)):
        loss = next_token_loss(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")
    save(folder / "state", optimizer=optimizer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
