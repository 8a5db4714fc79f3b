"""``luma demo``: the whole job on real text, every number measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from luma_client.console.output import JsonOption, Output, QuietOption

HELP = (
    "Train a small GPT with AdamW and with LUMA, save, convert, resume, ask the server, and write "
    "an HTML report.\n\nTakes about two minutes on two cores. Exits 1 if a check fails."
)
EPILOG = (
    "Example: luma demo --out /tmp/luma-demo\n\nJSON keys: ok, checks, setup, training, loss_gap, "
    "sizes, conversion, resume, stats, server, report, seconds"
)


def command(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for checkpoints and the report.")
    ] = Path("luma-demo"),
    steps: Annotated[
        int, typer.Option("--steps", min=10, max=100_000, help="Training steps.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Random seed.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto: CUDA if there is one.")
    ] = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Run ``luma demo``."""
    from luma_client.demo import DemoOptions, run_demo

    output = Output(json=as_json, quiet=quiet)
    result = run_demo(DemoOptions(out=out, steps=steps, seed=seed, device=device), output)
    return 0 if result.ok else 1
