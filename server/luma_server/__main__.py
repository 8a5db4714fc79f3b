"""``python -m luma_server --root DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from luma_core.errors import LumaError
from luma_server.run import serve
from luma_server.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit status, 2 for arguments that cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m luma_server", description="Serve LUMA checkpoints over HTTP."
    )
    parser.add_argument(
        "--root", required=True, help="folder or URL that holds {run}/{step}/luma.json"
    )
    parser.add_argument(
        "--host", default=Settings.host, help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=Settings.port, help="TCP port; 0, the default, picks a free one"
    )
    parser.add_argument(
        "--tokens-file", type=Path, help="file of `luma token create`; every request needs one"
    )
    parser.add_argument(
        "--no-auth",
        action="store_true",
        help="let everybody on this machine read and write; only on loopback",
    )
    options = parser.parse_args(arguments)
    try:
        serve(
            Settings(
                root=options.root,
                host=options.host,
                port=options.port,
                tokens_file=options.tokens_file,
                allow_anonymous=options.no_auth,
            )
        )
    except LumaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
