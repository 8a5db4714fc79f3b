"""What is the same for every optimizer: the model's size, the text's division, the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.1
FINAL_LR_SHARE = 0.1


@dataclass(frozen=True)
class Size:
    """A model and what it is trained with unless told otherwise.

    Attributes:
        name: of the size.
        layers: transformer blocks.
        width: of the residual stream.
        heads: of each attention.
        context: tokens in a sequence.
        vocab_size: tokens of the tokenizer.
        piece_characters: length of the pieces that texts are cut into.
        held_out_share: part of the text that is set aside.
        held_out_tokens: how many of its tokens are evaluated on at most.
        batch_tokens: tokens in a training step.
        steps: training steps.
        lrs: peak learning rates of the sweep.
    """

    name: str
    layers: int
    width: int
    heads: int
    context: int
    vocab_size: int
    piece_characters: int
    held_out_share: float
    held_out_tokens: int
    batch_tokens: int
    steps: int
    lrs: tuple[float, ...]


SIZES = {
    size.name: size
    for size in (
        Size(
            name="gpt2",
            layers=12,
            width=768,
            heads=12,
            context=1024,
            vocab_size=16384,
            piece_characters=16384,
            held_out_share=0.02,
            held_out_tokens=1 << 19,
            batch_tokens=1 << 14,
            steps=700,
            lrs=(3e-4, 6e-4, 1.2e-3),
        ),
        Size(
            name="tiny",
            layers=2,
            width=128,
            heads=4,
            context=64,
            vocab_size=1024,
            piece_characters=2048,
            held_out_share=0.1,
            held_out_tokens=1 << 14,
            batch_tokens=1 << 11,
            steps=150,
            lrs=(1e-3, 2e-3, 4e-3),
        ),
    )
}

SCHEDULES = ("cosine", "constant")


def lr_share(schedule: str, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of its peak.

    It rises linearly over the first tenth of the steps; then it stays (``constant``) or falls to
    a tenth of the peak along half a cosine (``cosine``).
    """
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == "constant":
        return 1.0
    done = (step - warm_up) / max(1, steps - 1 - warm_up)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
