"""``luma ls``: what is on a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luma_client.console.formats import DASH, bytes_text, percent
from luma_client.console.output import JsonOption, Output, QuietOption
from luma_client.console.remote import client_of, location_of

if TYPE_CHECKING:
    from rich.table import Table

    from luma_core.wire import CheckpointInfo, FileInfo

HELP = (
    "List the checkpoints of a server or of a run, or the files of a checkpoint.\n\nThe share is "
    "that of the files in what AdamW's two float32 moments would take."
)
EPILOG = (
    "Example: luma ls luma://127.0.0.1:8000/gpt2 --pinned\n\nJSON keys: url, items (of a "
    "checkpoint: name, size_bytes, sha256; else what GET /v1/checkpoints says of each)"
)


def command(
    url: Annotated[
        str,
        typer.Argument(
            help="luma://HOST[:PORT], with /RUN or /RUN/STEP behind it.", show_default=False
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="KEY[=VALUE]",
            help="Only with this label; may be repeated.",
            show_default=False,
        ),
    ] = None,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Only pinned ones.", show_default=False)
    ] = False,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="NAME", help="Only of this algorithm.")
    ] = None,
    min_step: Annotated[
        int | None, typer.Option("--min-step", min=0, help="Only with so many completed steps.")
    ] = None,
    max_step: Annotated[
        int | None, typer.Option("--max-step", min=0, help="Only with at most so many.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many, the first ones.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma ls``."""
    output = Output(json=as_json, quiet=quiet)
    location = location_of(url)
    with client_of(location) as client:
        if len(location.names) > 1:
            files = client.files(*location.checkpoint())
            _show(output, url, files, _files_table, [file.name for file in files])
            return
        found = client.checkpoints(
            run=location.names[0] if location.names else None,
            labels=dict(_label(text) for text in label or ()),
            pinned=True if pinned else None,
            optimizer=optimizer,
            min_step=min_step,
            max_step=max_step,
            limit=limit,
        )
    if not found and not as_json:
        output.note("there is no such checkpoint")
        return
    names = [f"{info.run}/{info.step}" for info in found]
    _show(output, url, found, _checkpoints_table, names)


def _show(output: Output, url: str, items: Sequence[Any], table: Any, names: Sequence[str]) -> None:
    output.result(
        {"url": url, "items": [asdict(item) for item in items]},
        human=lambda: table(items),
        quiet="\n".join(names) if names else None,
    )


def _label(text: str) -> tuple[str, str | None]:
    key, separator, value = text.partition("=")
    return key, value if separator else None


def _checkpoints_table(found: Sequence[CheckpointInfo]) -> Table:
    from luma_client.console.tables import plain_table

    columns = ["run", "step", "optimizer", "notes", "completed", "elements", "size", "share"]
    table = plain_table([*columns, "created"], left=4)
    for info in found:
        known = info.bytes is not None and bool(info.adamw_bytes)
        table.add_row(
            info.run,
            info.step,
            info.algorithm or DASH,
            _notes(info),
            _count(info.optimizer_step),
            _count(info.elements),
            bytes_text(info.bytes) if info.bytes is not None else DASH,
            percent((info.bytes or 0) / info.adamw_bytes) if known and info.adamw_bytes else DASH,
            info.created or DASH,
        )
    return table


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _notes(info: CheckpointInfo) -> str:
    if info.error is not None:
        return f"damaged: {info.error}"
    labels = [key if not value else f"{key}={value}" for key, value in info.labels.items()]
    return ", ".join([*(["pinned"] if info.pinned else []), *labels])


def _files_table(files: Sequence[FileInfo]) -> Table:
    from luma_client.console.tables import plain_table

    table = plain_table(["file", "size", "sha256"])
    for file in files:
        table.add_row(file.name, bytes_text(file.size_bytes), file.sha256)
    return table
