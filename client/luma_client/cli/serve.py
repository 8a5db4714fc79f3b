"""``luma serve``: the HTTP service over checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luma_client.console.output import JsonOption, Output, QuietOption

HELP = (
    "Serve checkpoints, laid out as ROOT/RUN/STEP, over HTTP until interrupted.\n\n"
    "One of --tokens-file and --no-auth is needed: who may use the server? Other addresses than "
    "loopback need --tokens-file."
)
EPILOG = (
    "Examples: luma serve --root runs --no-auth; luma serve --root s3://bucket/runs --host "
    "0.0.0.0 --tokens-file tokens.json\n\nJSON keys, printed when ready: url, root, pid"
)


def command(
    root: Annotated[
        str,
        typer.Option(
            "--root", help="Folder or URL that holds RUN/STEP folders.", show_default=False
        ),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = 8000,
    tokens_file: Annotated[
        Path | None,
        typer.Option(
            "--tokens-file",
            help="File of `luma token create`: every request needs a token.",
            show_default=False,
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth", help="Let everybody on this machine read and write.", show_default=False
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Run ``luma serve``."""
    from luma_client.console.server_process import ServerProcess

    output = Output(json=as_json, quiet=quiet)
    more = [] if tokens_file is None else ["--tokens-file", str(tokens_file)]
    more += ["--no-auth"] if no_auth else []
    with ServerProcess(root=root, host=host, port=port, more=more) as server:
        output.result(
            {"url": server.url, "root": root, "pid": server.pid},
            human=lambda: f"serving {root} at {server.url}  (API: {server.url}/openapi.json)",
            quiet=server.url,
        )
        output.note("press Ctrl-C to stop")
        return server.wait()
