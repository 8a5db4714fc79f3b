"""``luma token``: who may use a server."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.table import Table

    from luma_server.http.tokens import Token

HELP = (
    "Make, list and revoke tokens for `luma serve --tokens-file`.\n\n"
    "The file keeps a hash of each token; the token itself is shown once. A running server follows "
    "changes of the file."
)

EPILOG = (
    "Example: luma token create --tokens-file tokens.json --name trainer --scope write\n\n"
    "JSON keys: token, id, name, scope, runs, created, expires, requests_per_second, "
    "upload_bytes_per_day, tokens"
)

app = typer.Typer(help=HELP, no_args_is_help=True)

FileOption = Annotated[
    Path,
    typer.Option("--tokens-file", help="The file; made where it is missing.", show_default=False),
]

_DAY_SECONDS = 86400.0


@app.command(
    "create",
    help="Make a token and print it, this once.",
    epilog=(
        "Example: luma token create --tokens-file tokens.json --name trainer --scope write "
        "--run gpt2 --days 90\n\nJSON keys: token, id, name, scope, runs, created, expires, "
        "requests_per_second, upload_bytes_per_day"
    ),
)
def create(
    tokens_file: FileOption,
    name: Annotated[str, typer.Option("--name", help="Whom it is for.", show_default=False)],
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option("--scope", help="What it allows; each holds those before it."),
    ] = "read",
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="Only for runs that begin so; repeatable.", show_default=False),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0, help="How long it works; for ever by default."),
    ] = None,
    requests_per_second: Annotated[
        float | None,
        typer.Option("--requests-per-second", min=0, help="Instead of the server's limit."),
    ] = None,
    upload_bytes_per_day: Annotated[
        int | None,
        typer.Option("--upload-bytes-per-day", min=0, help="Instead of the server's limit."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma token create``."""
    tokens = _tokens()
    output = Output(json=as_json, quiet=quiet)
    entry, secret = tokens.create_token(
        tokens_file,
        name=name,
        scope=scope,
        runs=tuple(runs or ()),
        expires_seconds=None if days is None else days * _DAY_SECONDS,
        requests_per_second=requests_per_second,
        upload_bytes_per_day=upload_bytes_per_day,
    )
    output.result({"token": secret, **_plain(entry)}, human=lambda: secret, quiet=secret)
    output.note(f"kept nowhere else; its id is {entry.id}")


@app.command(
    "list",
    help="Show the tokens of a file, without their secrets.",
    epilog="Example: luma token list --tokens-file tokens.json\n\nJSON keys: tokens",
)
def list_tokens(
    tokens_file: FileOption, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Run ``luma token list``."""
    found = _tokens().read_tokens(tokens_file)
    Output(json=as_json, quiet=quiet).result(
        {"tokens": [_plain(entry) for entry in found]},
        human=lambda: _table(found),
        quiet="\n".join(entry.id for entry in found) or None,
    )


@app.command(
    "revoke",
    help="Take a token out of a file; servers refuse it from then on.",
    epilog=(
        "Example: luma token revoke 0123456789abcdef --tokens-file tokens.json\n\n"
        "JSON keys: those of create but token"
    ),
)
def revoke(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the token.", show_default=False)
    ],
    tokens_file: FileOption,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma token revoke``."""
    entry = _tokens().revoke_token(tokens_file, token_id)
    Output(json=as_json, quiet=quiet).result(
        _plain(entry), human=lambda: f"revoked {entry.id}  {entry.name}", quiet=entry.id
    )


def _tokens() -> Any:
    from luma_client.console.server_process import ServerProcess

    ServerProcess.require()
    from luma_server.http import tokens

    return tokens


def _plain(entry: Token) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if key != "sha256"}


def _table(found: tuple[Token, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("id", "name", "scope", "runs", "created", "expires"):
        table.add_column(column)
    now = datetime.now(UTC)
    for entry in found:
        expires = entry.expires or "never"
        if entry.expired(now):
            expires += " (expired)"
        runs = ", ".join(f"{prefix}*" for prefix in entry.runs) or "all"
        table.add_row(entry.id, entry.name, entry.scope, runs, entry.created, expires)
    return table
