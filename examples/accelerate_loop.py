"""LUMA with Accelerate: ``accelerate launch examples/accelerate_loop.py FOLDER``."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import TinyGPT, batches, next_token_loss

from luma_core import LUMA
from luma_core.checkpoint import save


def main(folder: Path, steps: int) -> None:
    """Train for some steps, and save both ways."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    model = TinyGPT()
    optimizer = LUMA(model.named_parameters(), lr=3e-3, seed=0)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step, tokens in enumerate(batches(steps, seed=accelerator.process_index)):
        tokens = tokens.to(accelerator.device)
        loss = next_token_loss(model(tokens), tokens)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        accelerator.print(f"step {step} loss {loss.item():.4f}")
    accelerator.save_state(str(folder / "accelerate"))
    if accelerator.is_main_process:
        save(folder / "state", optimizer=optimizer.optimizer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
