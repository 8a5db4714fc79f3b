"""LUMA in Lightning: ``examples/lightning_module.py FOLDER``."""

import sys
from pathlib import Path

import lightning
import torch
from tiny import TinyGPT, batches
from torch import Tensor

from luma_core import LUMA
from luma_core.checkpoint import save


class Module(lightning.LightningModule):
    """The tiny model and how it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyGPT()

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        """Return the loss of a batch."""
        return self.model.loss(tokens)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return LUMA(self.named_parameters(), lr=3e-3, seed=0)


def main(folder: Path, steps: int) -> None:
    """Train for some steps; Lightning's own checkpoint holds the state, and so does ours."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        default_root_dir=folder,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(list(batches(steps)), batch_size=None))
    trainer.save_checkpoint(folder / "lightning.ckpt")
    save(folder / "state", optimizer=trainer.optimizers[0])
    print(f"step {trainer.global_step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
