"""``luma pull``: a checkpoint from a server."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from luma_client.console.formats import bytes_text
from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import CheckpointArgument, client_of, location_of

HELP = (
    "Bring a checkpoint from a server into a folder.\n\nEvery hash is checked, and the manifest is "
    "written last. Files that are there already are not fetched, so a pull that was interrupted "
    "goes on when it is run again. One that holds differences to others brings those, each into a "
    "folder of its own beside DST; `luma flatten URL DST` makes a single full checkpoint instead."
)
EPILOG = (
    "Example: luma pull luma://127.0.0.1:8000/gpt2/1000 runs/gpt2/1000\n\nJSON keys: url, "
    "destination, run, step, digest, chain, files, bytes"
)


def command(
    url: CheckpointArgument,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="A folder, or the URL of one in a bucket.", show_default=False
        ),
    ],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace another checkpoint at DST.", show_default=False),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma pull``."""
    from luma_core.checkpoint.storage.open import open_store
    from luma_core.checkpoint.storage.store import storage_errors
    from luma_core.errors import CheckpointExistsError

    output = Output(json=as_json, quiet=quiet)
    location = location_of(url)
    run, step = location.checkpoint()
    store = open_store(destination)
    try:
        with (
            storage_errors(store.url),
            client_of(location) as client,
            output.progress("pulling") as tell,
        ):
            manifest = client.download(run, step, store, overwrite=overwrite, progress=tell)
    except CheckpointExistsError as error:
        again = shlex.join(["luma", "pull", url, destination, "--overwrite"])
        raise CheckpointExistsError(error.message, hint=f"To replace it: {again}") from error
    size = sum(file.bytes for file in manifest.files)
    result = {
        "url": str(location),
        "destination": destination,
        "run": run,
        "step": step,
        "digest": manifest.digest,
        "chain": manifest.chain,
        "files": len(manifest.files),
        "bytes": size,
    }
    if manifest.base is not None:
        output.note(f"It holds differences to {manifest.base.folder}, which is beside it now.")
    count = f"{len(manifest.files)} file{'s' * (len(manifest.files) != 1)}"
    output.result(
        result,
        human=lambda: f"pulled {location} to {destination}: {count}, {bytes_text(size)}",
        quiet=destination,
    )
