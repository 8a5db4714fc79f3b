"""``luma convert``: between our checkpoints and the AdamW state of other tools."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luma_client.console.formats import bytes_text, percent
from luma_client.console.output import JsonOption, Output, QuietOption
from luma_core import catalog

if TYPE_CHECKING:
    from rich.table import Table

    from luma_core.convert import ConversionReport, MomentError

HELP = (
    "Convert optimizer state: AdamW state of PyTorch, Trainer, Accelerate, Lightning, FSDP, DCP, "
    "DeepSpeed and 8-bit optimizers to a compressed checkpoint, or back.\n\n"
    "The format of SRC is detected. To luma rounds to nearest; LUMA to AdamW and back restores "
    "every value bit for bit. docs/convert.md lists the formats. Processes that torchrun starts "
    "(-m luma_client convert ...) share the work of writing a checkpoint."
)
EPILOG = (
    "Examples: luma convert runs/gpt2/1000 adamw.pt --to adamw; luma convert adamw.pt "
    "runs/gpt2/1000 --to luma; luma convert checkpoint-1000 small --to luma --codec turbo\n\n"
    "JSON keys: source, destination, source_format, target_format, parameters, elements, "
    "source_bytes, result_bytes, errors, update"
)

if TYPE_CHECKING:
    TargetCodec = str
else:
    TargetCodec = Literal[catalog.TARGET_NAMES]


def _target(name: str) -> str:
    """Return the name of a format that can be written, by us or by an installed package."""
    if name not in catalog.WRITTEN_FORMATS:
        from luma_core.convert import target_names

        if name not in target_names():
            known = ", ".join(map(repr, target_names()))
            raise typer.BadParameter(f"{name!r} is not one of {known}.")
    return name


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint, or other tools' file or folder: a path or URL.",
            show_default=False,
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="A folder for luma, dcp and deepspeed-universal, else a file.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            parser=_target,
            metavar=f"<{'|'.join(catalog.WRITTEN_FORMATS)}>",
            help="Format to write.",
            show_default=False,
        ),
    ],
    codec: Annotated[
        TargetCodec,
        typer.Option("--codec", help="To luma: how moments are kept; turbo*: for TurboAdam."),
    ] = catalog.DEFAULT_TARGET,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Weights that name parameters where SRC has no names; to lightning: the .ckpt to "
            "copy; to deepspeed-universal: the weights that belong to the state.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at DST.", show_default=False)
    ] = False,
    block_size: Annotated[
        int,
        typer.Option("--block-size", min=0, help="To luma: elements per scale; 0: one per tensor."),
    ] = 128,
    compression: Annotated[
        Literal["zstd", "none"], typer.Option("--compression", help="To luma: lossless, of shards.")
    ] = "zstd",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="To luma: of the rounding noise of later steps.")
    ] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run ``luma convert``."""
    from luma_core.convert import ConvertOptions

    output = Output(json=as_json, quiet=quiet)
    own = [
        *(["--codec", codec] if codec != catalog.DEFAULT_TARGET else []),
        *(["--model", model] if model else []),
    ]
    again = shlex.join(["luma", "convert", source, destination, "--to", to, *own, "--overwrite"])
    with (
        _launched() as (work, first),
        _hint_of_overwriting("" if overwrite else again),
        output.progress("converting") as tell,
    ):
        report = work(
            source,
            destination,
            to=to,
            options=ConvertOptions(
                model=model,
                overwrite=overwrite,
                codec=codec,
                block_size=block_size or None,
                compression=compression,
                seed=seed,
            ),
            progress=tell,
        )
    if first:
        output.result(
            {"source": source, **asdict(report)},
            human=lambda: _table(source, report),
            quiet=report.destination,
        )


@contextmanager
def _launched() -> Iterator[tuple[Callable[..., ConversionReport], bool]]:
    """Yield what converts, alone or with the processes that torchrun started, and who reports."""
    from torch import distributed

    from luma_core.convert import convert, convert_together

    # A training process may run `luma convert` as well, alone, and its environment is torchrun's.
    as_module = getattr(sys.modules["__main__"].__spec__, "name", "") == "luma_client.__main__"
    if not (as_module and distributed.is_available() and distributed.is_torchelastic_launched()):
        yield convert, True
        return
    distributed.init_process_group("gloo")
    try:
        yield convert_together, distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


@contextmanager
def _hint_of_overwriting(command: str) -> Iterator[None]:
    from luma_core.errors import CheckpointExistsError

    try:
        yield
    except CheckpointExistsError as error:
        if not command:
            raise
        hint = f"Choose another DST, or replace it: {command}"
        raise CheckpointExistsError(error.message, hint=hint) from error


def _table(source: str, report: ConversionReport) -> Table:
    from luma_client.console.tables import facts

    ratio = (
        f"  ({percent(report.result_bytes / report.source_bytes)})" if report.source_bytes else ""
    )
    return facts(
        [
            ("from", f"{source}  {report.source_format}, {bytes_text(report.source_bytes)}"),
            (
                "to",
                f"{report.destination}  {report.target_format}, "
                f"{bytes_text(report.result_bytes)}{ratio}",
            ),
            ("parameters", f"{report.parameters:,} with {report.elements:,} elements"),
            *(
                (f"error of {what}", _error_text(error))
                for what, error in (*report.errors.items(), ("the update", report.update))
                if report.target_format == "luma"
            ),
        ]
    )


def _error_text(error: MomentError) -> str:
    text = f"{percent(error.relative_rms)} rms, {percent(error.relative_max)} largest"
    if error.changed:
        share = percent(error.changed / error.elements)
        text += f"; {error.changed:,} ({share}) changed by more than a tenth"
    return f"{text}, {error.zeroed:,} of them became 0" if error.zeroed else text
