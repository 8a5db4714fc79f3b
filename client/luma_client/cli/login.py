"""``luma login``: keep the token of a server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import client_of, location_of

HELP = (
    "Keep the token of a server for later commands.\n\nThe token is asked for, or read from "
    "standard input where that is no terminal, and tried. It is kept in a file that only you can "
    "read, and sent to that address alone. The variable LUMA_TOKEN goes before it."
)
EPILOG = "Example: luma login luma://luma.example.org < token.txt\n\nJSON keys: url, file, kept"


def command(
    url: Annotated[
        str, typer.Argument(help="luma://HOST[:PORT] of the server.", show_default=False)
    ],
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the token instead.", show_default=False)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma login``."""
    from luma_client.credentials import keep_token
    from luma_core.checkpoint.storage.store import storage_errors

    output = Output(json=as_json, quiet=quiet)
    base = location_of(url).base_url
    token = None if forget else _asked(url)
    with storage_errors("the file of tokens"):
        file = keep_token(base, token)
    output.result(
        {"url": base, "file": str(file), "kept": not forget},
        human=lambda: f"{'forgot' if forget else 'kept'} the token of {base} in {file}",
    )


def _asked(url: str) -> str:
    from luma_core.errors import ConfigurationError

    if sys.stdin.isatty():
        token = str(typer.prompt("Token", hide_input=True, err=True))
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise ConfigurationError(
            "no token was given.", hint="Make one on the server: luma token create."
        )
    with client_of(location_of(url), token=token) as client:
        client.checkpoints(limit=1)
    return token
