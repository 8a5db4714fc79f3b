"""What the demo shows while it works and after each step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from luma_client.console.formats import bytes_text, percent, signed_percent
from luma_client.console.output import Output
from luma_client.console.tables import plain_table, stats_table
from luma_client.demo.results import (
    Check,
    Conversion,
    DemoResult,
    Resume,
    RunResult,
    Setup,
    Sizes,
)
from luma_client.demo.train import OnStep, Run

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.text import Text

_STEPS = 5


class View:
    """Prints to an `Output`: nothing but progress where that is JSON or quiet."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def step(self, number: int, title: str) -> None:
        """Announce one of the five steps."""
        from rich.text import Text

        self._output.show(Text(f"\n{number}/{_STEPS}  {title}", style="bold"))

    def setup(self, setup: Setup) -> None:
        """Tell what will be trained."""
        self._output.show(
            f"GPT of {setup.parameters:,} parameters in {setup.tensors} tensors on {setup.device}; "
            f"{setup.train_bytes:,} bytes of text to train on, {setup.held_out_bytes:,} held out; "
            f"{setup.steps} steps of {setup.tokens_per_step:,} bytes, seed {setup.seed}."
        )

    @contextmanager
    def training(self, label: str, *, begin: int, steps: int) -> Iterator[OnStep]:
        """Show training live on standard error: a bar on a terminal, else a line now and then."""
        if self._output.quiet:
            yield lambda _run: None
        elif sys.stderr.isatty():
            with _training_bar() as bar:
                task = bar.add_task(label, total=steps, completed=begin, told="")
                yield lambda run: _advance(bar, task, run)
        else:
            yield self._line

    def _line(self, run: Run) -> None:
        if run.held_out and run.held_out[-1][0] == run.step:
            self._output.note(f"{run.name}: step {run.step}, {_losses(run)}")

    def trained(self, runs: tuple[RunResult, RunResult], gap: float) -> None:
        """Show both runs' results."""
        table = plain_table(
            ["optimizer", "held-out loss", "state", "bytes per parameter", "optimizer step"]
        )
        for run in runs:
            table.add_row(
                run.name,
                f"{run.held_out_loss:.4f}",
                bytes_text(run.state_bytes),
                f"{run.bytes_per_parameter:.3f}",
                f"{run.optimizer_ms_per_step:.1f} ms",
            )
        self._output.show(table)
        self._output.show("AdamW's step is PyTorch's default one, not its fused one.")
        self._output.show(
            f"LUMA's held-out loss is {signed_percent(gap)} from AdamW's (nats per byte)."
        )

    def saved(self, sizes: Sizes, *, folder: str, step: int) -> None:
        """Show what lies on disk."""
        table = plain_table(["saved on the way, at step " + str(step), "size"])
        table.add_row("AdamW state, torch.save", bytes_text(sizes.adamw_file_bytes))
        share = sizes.checkpoint_state_bytes / sizes.adamw_file_bytes
        table.add_row(
            "LUMA state, compressed shards",
            f"{bytes_text(sizes.checkpoint_state_bytes)} ({percent(share)})",
        )
        table.add_row(
            "whole checkpoint with the model's weights", bytes_text(sizes.checkpoint_total_bytes)
        )
        self._output.show(table)
        self._output.show(f"checkpoint: {folder}", wrap=False)

    def converted(self, conversion: Conversion, *, luma_loss: float) -> None:
        """Show what conversion costs."""
        table = plain_table(
            ["AdamW's true state, coded by LUMA", "RMS error", "largest error", "worst element"]
        )
        for name, error in (
            ("m", conversion.m),
            ("v", conversion.v),
            ("update m/sqrt(v)", conversion.update),
        ):
            table.add_row(
                name,
                percent(error.relative_rms),
                percent(error.relative_max),
                percent(error.element_max),
            )
        self._output.show(table)
        self._output.show(
            "RMS: rms(error) / rms(value); largest: max|error| / max|value|; worst element: "
            f"max of |error| / |value| over all {conversion.m.elements:,} elements but zeros."
        )
        self._output.show(
            f"AdamW went on from LUMA's state for {conversion.continued_steps} steps: held-out "
            f"loss {conversion.continued[-1][1]:.4f} (LUMA itself: {luma_loss:.4f})."
        )
        same = "identical" if conversion.round_trip_identical else "NOT identical"
        self._output.show(
            f"LUMA to AdamW to LUMA: m, v and update are {same}, bit for bit; "
            f"{percent(conversion.round_trip_codes_share, 5)} of the codes are."
        )

    def resumed(self, resume: Resume) -> None:
        """Show whether resuming is exact."""
        for what, same in (
            (f"{resume.weights_compared:,} weights", resume.parameters_identical),
            ("codes, scales and counters", resume.state_identical),
        ):
            told = "identical" if same else "NOT identical"
            self._output.show(
                f"{what}: {told}, bit for bit, to the run that never stopped, after "
                f"{resume.steps} more steps."
            )

    def served(self, result: DemoResult) -> None:
        """Show what the server said, and every check."""
        self._output.show(f"asked {result.server} for run 'demo':")
        self._output.show(stats_table(result.stats, columns=self._output.columns))
        self._output.show(f"report: {result.report}", wrap=False)
        for check in result.checks:
            self._output.show(_check_line(check))


def verdict(result: DemoResult) -> Text:
    """Return the last line."""
    from rich.text import Text

    told = "all checks passed" if result.ok else "SOME CHECKS FAILED"
    style = "bold green" if result.ok else "bold red"
    return Text(f"{told} in {result.seconds:.0f} s", style=style)


def _check_line(check: Check) -> Text:
    from rich.text import Text

    mark = ("ok    ", "green") if check.ok else ("FAILED", "bold red")
    return Text.assemble(mark, f"  {check.name}: {check.measured}")


def _training_bar() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description:<18}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[told]}", markup=False),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
    )


def _advance(bar: Progress, task: TaskID, run: Run) -> None:
    bar.update(task, completed=run.step, told=_losses(run))


def _losses(run: Run) -> str:
    told = f"loss {run.losses[-1][1]:.3f}"
    return f"{told}, held out {run.held_out[-1][1]:.4f}" if run.held_out else told
