"""``luma flatten``: a full checkpoint of one that builds on others."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luma_client.console.formats import bytes_text
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.table import Table

    from luma_core.checkpoint import Manifest

HELP = (
    "Write a full checkpoint of one that holds differences to others.\n\n"
    "Every tensor is the same bit for bit; SRC stays. `luma inspect` shows what SRC builds on."
)
EPILOG = (
    "Example: luma flatten runs/gpt2/00001000 gpt2-final\n\nJSON keys: source, destination, chain, "
    "source_bytes, result_bytes, digest"
)


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder of the checkpoint.", show_default=False),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="Folder of the new one.", show_default=False)
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at DST.", show_default=False)
    ] = False,
    compression: Annotated[
        Literal["zstd", "none"], typer.Option("--compression", help="Lossless, of the shards.")
    ] = "zstd",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma flatten``."""
    from luma_core import checkpoint
    from luma_core.errors import CheckpointExistsError

    output = Output(json=as_json, quiet=quiet)
    with checkpoint.open(source) as opened:
        before = opened.manifest
    try:
        with output.progress("flattening") as progress:
            manifest = checkpoint.flatten(
                source,
                destination,
                compression=compression,
                overwrite=overwrite,
                progress=progress,
            )
    except CheckpointExistsError as error:
        again = shlex.join(["luma", "flatten", source, destination, "--overwrite"])
        hint = error.hint if overwrite else f"Choose another DST, or replace it: {again}"
        raise CheckpointExistsError(error.message, hint=hint) from error
    output.result(
        {
            "source": source,
            "destination": destination,
            "chain": before.chain,
            "source_bytes": before.summary.stored_bytes,
            "result_bytes": manifest.summary.stored_bytes,
            "digest": manifest.digest,
        },
        human=lambda: _table(source, destination, before, manifest),
        quiet=destination,
    )


def _table(source: str, destination: str, before: Manifest, manifest: Manifest) -> Table:
    from luma_client.console.tables import facts

    chain = f"{before.chain} checkpoint{'s' * (before.chain > 1)}"
    return facts(
        [
            ("from", f"{source}  {chain}, its own {bytes_text(before.summary.stored_bytes)}"),
            ("to", f"{destination}  full, {bytes_text(manifest.summary.stored_bytes)}"),
            ("digest", manifest.digest),
        ]
    )
