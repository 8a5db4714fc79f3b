"""``luma push``: a checkpoint to a server."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from luma_client.console.formats import bytes_text
from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import client_of, location_of

HELP = (
    "Send a checkpoint to a server.\n\nThe server checks every hash and shows the checkpoint only "
    "once it is whole. Files that it has already are not sent, and a push that was interrupted "
    "goes on when it is run again."
)
EPILOG = (
    "Example: luma push runs/gpt2/1000 luma://127.0.0.1:8000/gpt2/1000\n\nJSON keys: source, url, "
    "run, step, digest, files, bytes"
)


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder of the checkpoint.", show_default=False),
    ],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Where to: luma://HOST[:PORT]/RUN/STEP.", show_default=False
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at URL.", show_default=False)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma push``."""
    from luma_core.checkpoint.format.folder import read_manifest
    from luma_core.checkpoint.storage.open import open_store
    from luma_core.checkpoint.storage.store import storage_errors
    from luma_core.errors import CheckpointExistsError

    output = Output(json=as_json, quiet=quiet)
    location = location_of(url)
    run, step = location.checkpoint()
    store = open_store(source)
    with storage_errors(store.url):
        manifest = read_manifest(store)
    try:
        with client_of(location) as client, output.progress("pushing") as tell:
            client.upload(store, manifest.to_bytes(), run, step, overwrite=overwrite, progress=tell)
    except CheckpointExistsError as error:
        again = shlex.join(["luma", "push", source, url, "--overwrite"])
        raise CheckpointExistsError(error.message, hint=f"To replace it: {again}") from error
    size = sum(file.bytes for file in manifest.files)
    result = {
        "source": source,
        "url": str(location),
        "run": run,
        "step": step,
        "digest": manifest.digest,
        "files": len(manifest.files),
        "bytes": size,
    }
    count = f"{len(manifest.files)} file{'s' * (len(manifest.files) != 1)}"
    output.result(
        result,
        human=lambda: f"pushed {source} to {location}: {count}, {bytes_text(size)}",
        quiet=str(location),
    )
