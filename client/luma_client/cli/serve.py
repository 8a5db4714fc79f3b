"""``luma serve``: the HTTP service over a folder of checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from luma_client.cli.output import JsonOption, Output, QuietOption

HELP = "Serve a folder of checkpoints, laid out as ROOT/RUN/STEP, over HTTP until interrupted."
EPILOG = (
    "Example: luma serve --root runs --port 8000\n\nJSON keys, printed when ready: url, root, pid"
)


def command(
    root: Annotated[
        str, typer.Option("--root", help="Folder that holds RUN/STEP folders.", show_default=False)
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = 8000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Run ``luma serve``."""
    from luma_client.cli.server_process import ServerProcess

    output = Output(json=as_json, quiet=quiet)
    with ServerProcess(root=root, host=host, port=port) as server:
        output.result(
            {"url": server.url, "root": root, "pid": server.pid},
            human=lambda: f"serving {root} at {server.url}  (API: {server.url}/openapi.json)",
            quiet=server.url,
        )
        output.note("press Ctrl-C to stop")
        return server.wait()
