"""Hugging Face Trainer with LUMA, saved by a CheckpointManager: ``examples/trainer.py FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import torch
from tiny import LENGTH, VOCABULARY, batches
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from luma_core import LUMA
from luma_core.checkpoint import CheckpointManager


class SaveState(TrainerCallback):
    """Saves the optimizer's compressed state whenever the Trainer saves."""

    def __init__(self, folder: Path) -> None:
        self.manager = CheckpointManager(folder, keep_last=2)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, by the main process alone."""
        if state.is_world_process_zero:
            # Accelerate wraps the optimizer.
            optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
            self.manager.save(state.global_step, optimizer=optimizer)


def main(folder: Path, steps: int) -> None:
    """Train for some steps; weights go to one folder and state to another."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    rows = [row for batch in batches(steps) for row in batch]
    arguments = TrainingArguments(
        output_dir=str(folder / "model"),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=steps,
        logging_steps=1,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizers=(LUMA(model.named_parameters(), lr=3e-3, seed=0), None),
        callbacks=[SaveState(folder / "state")],
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
