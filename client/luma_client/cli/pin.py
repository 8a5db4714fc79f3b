"""``luma pin``: keep a checkpoint from being removed."""

from __future__ import annotations

from typing import Annotated

import typer

from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import CheckpointArgument, client_of, location_of

HELP = "Keep a checkpoint on a server from being removed and replaced, or let go of it."
EPILOG = "Example: luma pin luma://127.0.0.1:8000/gpt2/1000\n\nJSON keys: url, pinned"


def command(
    url: CheckpointArgument,
    remove: Annotated[
        bool, typer.Option("--remove", help="Let go of it.", show_default=False)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma pin``."""
    output = Output(json=as_json, quiet=quiet)
    location = location_of(url)
    run, step = location.checkpoint()
    with client_of(location) as client:
        client.pin(run, step, pinned=not remove)
    output.result(
        {"url": str(location), "pinned": not remove},
        human=lambda: f"{location} is {'not pinned any more' if remove else 'pinned'}",
    )
