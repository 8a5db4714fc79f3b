"""``luma rm``: remove checkpoints from a server."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import client_of, location_of

HELP = "Remove checkpoints from a server. Pinned ones stay, and are an error."
EPILOG = "Example: luma rm luma://127.0.0.1:8000/gpt2/1000 --yes\n\nJSON keys: removed"


def command(
    urls: Annotated[
        list[str],
        typer.Argument(
            metavar="URL...", help="luma://HOST[:PORT]/RUN/STEP of each.", show_default=False
        ),
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma rm``."""
    from luma_core.errors import CheckpointNotFoundError

    output = Output(json=as_json, quiet=quiet)
    places = [location_of(url) for url in urls]
    names = [place.checkpoint() for place in places]
    for place, (run, step) in zip(places, names, strict=True):
        with client_of(place) as client:
            if client.version(run, step) is None:
                raise CheckpointNotFoundError(f"{place}: there is no such checkpoint.")
    if not yes:
        _confirm(urls)
    for place, (run, step) in zip(places, names, strict=True):
        with client_of(place) as client:
            client.delete(run, step)
    removed = [str(place) for place in places]
    output.result(
        {"removed": removed}, human=lambda: "\n".join(f"removed {url}" for url in removed)
    )


def _confirm(urls: list[str]) -> None:
    from luma_core.errors import ConfigurationError

    if not sys.stdin.isatty():
        raise ConfigurationError(
            "what is removed is gone, and nobody is there to be asked.",
            hint=f"If you mean it: {shlex.join(['luma', 'rm', *urls, '--yes'])}",
        )
    what = urls[0] if len(urls) == 1 else f"{len(urls)} checkpoints"
    typer.confirm(f"Remove {what} for good?", abort=True, err=True)
