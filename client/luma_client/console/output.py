"""Where a command's results, notes and progress go: one object for people, JSON and quiet."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with stable keys instead of text.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the essential value, and no progress.")
]

_PIPE_COLUMNS = 200
"""Width of tables that no terminal limits."""

_SHORT_SECONDS = 0.5
"""Work that ends sooner shows no bar."""

Progress = Callable[[int, int], None]


class Output:
    """Results go to standard output, everything else to standard error.

    Args:
        json: print results as JSON.
        quiet: print results as the one value scripts want, and no notes or progress.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        if json and quiet:
            raise typer.BadParameter("--json and --quiet exclude each other.")
        self.json = json
        self.quiet = quiet

    @property
    def columns(self) -> int:
        """Width of what people read."""
        return _console(sys.stdout).width

    def result(
        self, value: Any, *, human: Callable[[], RenderableType], quiet: str | None = None
    ) -> None:
        """Print a command's result.

        Args:
            value: plain JSON values.
            human: makes what people see; called only for them.
            quiet: the line ``--quiet`` prints; nothing by default.
        """
        if self.json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
        elif not self.quiet:
            shown = human()
            # Lines that may hold a path stay whole, so that it can be copied.
            _console(sys.stdout).print(shown, soft_wrap=_is_text(shown))
        elif quiet is not None:
            sys.stdout.write(quiet + "\n")
        sys.stdout.flush()

    def show(self, text: RenderableType, *, wrap: bool = True) -> None:
        """Print part of a result that comes in pieces, for people only."""
        if not self.json and not self.quiet:
            _console(sys.stdout).print(text, soft_wrap=not wrap)
            sys.stdout.flush()

    def note(self, text: RenderableType) -> None:
        """Print to standard error, unless quiet."""
        if not self.quiet:
            _console(sys.stderr).print(text, style="dim")

    @contextmanager
    def progress(
        self, label: str, *, unit: Literal["bytes", "parameters"] = "bytes"
    ) -> Iterator[Progress]:
        """Show a bar on standard error while the block runs, if that is a terminal.

        Yields:
            What the work calls with units done and in total.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich import progress as bars

        amount = bars.DownloadColumn() if unit == "bytes" else bars.MofNCompleteColumn()
        bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            amount,
            bars.TimeRemainingColumn(),
            console=_console(sys.stderr),
            transient=True,
        )
        task = bar.add_task(label, total=None)
        begin = time.monotonic()

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not bar.live.is_started and time.monotonic() - begin > _SHORT_SECONDS:
                bar.start()

        try:
            yield advance
        finally:
            bar.stop()


def _is_text(shown: RenderableType) -> bool:
    from rich.text import Text

    return isinstance(shown, str | Text)


def _console(file: TextIO) -> Console:
    from rich.console import Console

    # Names come from users' files: nothing in them is markup, an emoji or worth colouring.
    width = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(
        file=file, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False
    )
