"""How long one large gradient of one element holds up the other elements of its block.

``python -m benchmarks.stall [--size 1000] [--blocks 8]``. Gradients are normal. In one step one
element of each block has a gradient ``size`` times the others'. The table says how far its
neighbours move in the steps that follow, as a share of how far the same optimizer moves them
without it. `torch.optim.AdamW` treats each element by itself: its share is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luma_core import LUMA, TurboAdam

BEFORE = 200
"""Steps until the large gradient, so that the moments have settled."""

SPANS = ((1, 20), (21, 100), (101, 380))
"""Steps after it, first and last."""

OURS = {"weight_decay": 0.0, "seed": 0, "min_compress_elements": 0}
TURBO = {**OURS, "min_m_compress_elements": 0}

OPTIMIZERS: dict[str, Callable[[nn.Parameter], Any]] = {
    "AdamW": lambda param: torch.optim.AdamW([param], weight_decay=0.0),
    "LUMA": lambda param: LUMA([param], **OURS),
    "TurboAdam, 5bit": lambda param: TurboAdam([param], **TURBO),
    "TurboAdam, 8bit": lambda param: TurboAdam([param], preset="8bit", **TURBO),
    "TurboAdam, m 4 and v 4 bits": lambda param: TurboAdam(
        [param], m_bits=4, v_bits=4, v_floor=None, **TURBO
    ),
}


def distances(build: Callable[[nn.Parameter], Any], *, size: float, blocks: int) -> Tensor:
    """Return how far all elements but the first of each block move, on average, in each step.

    Args:
        build: makes the optimizer of a parameter.
        size: of the one large gradient; 0 for none.
        blocks: blocks of 128 elements.

    Returns:
        float32 ``[steps]``, from the step after the large gradient on.
    """
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(blocks, 128))
    optimizer = build(param)
    found = []
    for step in range(BEFORE + SPANS[-1][1] + 1):
        param.grad = torch.randn(param.shape, generator=generator)
        if step == BEFORE and size:
            param.grad[:, 0] = size
        before = param.detach().clone()
        optimizer.step()
        if step > BEFORE:
            found.append((param.detach() - before)[:, 1:].abs().mean())
    return torch.stack(found)


def shares(build: Callable[[nn.Parameter], Any], *, size: float, blocks: int) -> list[float]:
    """Return the neighbours' movement over each of ``SPANS``, as a share of that without it."""
    held = distances(build, size=size, blocks=blocks)
    free = distances(build, size=0.0, blocks=blocks)
    return [
        float(held[first - 1 : last].mean() / free[first - 1 : last].mean())
        for first, last in SPANS
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=float, default=1000.0, help="of the large gradient")
    parser.add_argument("--blocks", type=int, default=8, help="blocks of 128 elements")
    options = parser.parse_args(arguments)
    heads = [f"steps {first} to {last}" for first, last in SPANS]
    print("| share of the movement without it | " + " | ".join(heads) + " |")
    print("|---|" + "--:|" * len(heads))
    for name, build in OPTIMIZERS.items():
        row = shares(build, size=options.size, blocks=options.blocks)
        print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in row) + " |")


if __name__ == "__main__":
    main()
