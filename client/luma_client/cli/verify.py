"""``luma verify``: is every byte of a checkpoint as it was written?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luma_client.console.formats import bytes_text
from luma_client.console.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from rich.text import Text

    from luma_core.checkpoint import VerifyReport

HELP = "Check sizes, checksums, headers and the manifest of a checkpoint.\n\nExits 1 on a problem."
EPILOG = (
    "Example: luma verify runs/gpt2/1000\n\nJSON keys: path, ok, files, bytes, problems and notes "
    "(each a list of file, message)"
)


def command(
    path: Annotated[str, typer.Argument(help="Folder of the checkpoint.", show_default=False)],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Run ``luma verify``."""
    from luma_core import checkpoint

    output = Output(json=as_json, quiet=quiet)
    with output.progress("verifying") as progress:
        report = checkpoint.verify(path, progress=progress)
    output.result(
        {"path": path, "ok": report.ok, **asdict(report)}, human=lambda: _text(path, report)
    )
    return 0 if report.ok else 1


def _text(path: str, report: VerifyReport) -> Text:
    from rich.text import Text

    text = Text()
    for problem in report.problems:
        text.append("problem  ", "red").append(f"{problem.file}: {problem.message}\n")
    for note in report.notes:
        text.append("note     ", "yellow").append(f"{note.file}: {note.message}\n")
    size = f"{report.files} file{'s' * (report.files != 1)}, {bytes_text(report.bytes)}"
    if report.ok:
        return text.append("ok", "bold green").append(f"  {path}: {size} checked")
    count = len(report.problems)
    text.append("corrupt", "bold red")
    return text.append(f"  {path}: {count} problem{'s' * (count > 1)} in {size}")
