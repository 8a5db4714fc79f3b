"""The command tree, and the one place where exceptions become messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from luma_client.cli import (
    convert,
    demo,
    diff,
    doctor,
    estimate,
    flatten,
    inspect,
    login,
    ls,
    partition,
    pin,
    pull,
    push,
    rm,
    serve,
    stats,
    token,
    verify,
)

_EPILOG = (
    "Results go to standard output, everything else to standard error. Every command takes --json "
    "and --quiet.\n\nExit codes: 0 done; 1 a check failed; 2 wrong usage; 3 not found; 4 already "
    "exists; 5 corrupt or unreadable checkpoint; 6 state that does not fit or convert; 7 storage "
    "failed; 8 server failed; 130 interrupted."
)

app = typer.Typer(
    name="luma",
    help="Compressed optimizer state: look into checkpoints, check, compare, convert, share them.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(demo, inspect, stats, verify, diff, convert, flatten, partition, estimate),
    *(push, pull, ls, rm, pin, login),
    *(serve, doctor),
)
for _module in _COMMANDS:
    _name = _module.__name__.rpartition(".")[2]
    app.command(_name, help=_module.HELP, epilog=_module.EPILOG)(_module.command)
app.add_typer(token.app, name="token", help=token.HELP, epilog=token.EPILOG)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luma {_version()}")
        raise typer.Exit


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("luma-state")
    except PackageNotFoundError:
        from luma_core import __version__

        return __version__


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: what follows the program's name; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read standard output is gone; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed, not raised."""
    try:
        return app(list(arguments), prog_name="luma", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        from luma_client.console.errors import report

        code = report(error, as_json="--json" in arguments)
        if code is None:
            raise
        return code
