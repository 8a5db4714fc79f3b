"""Formats by name, and the conversion between any two of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from luma_core import checkpoint
from luma_core.checkpoint.local import local_path
from luma_core.convert import luma, torch_adamw
from luma_core.convert.base import Progress, Sink, SinkOptions, Source, total_elements
from luma_core.errors import CheckpointNotFoundError, ConfigurationError

Url = str | os.PathLike[str]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what it is called.
        source: opens state in it.
        sink: writes it.
        detect: whether a place holds it.
    """

    name: str
    source: Callable[[Url], Source]
    sink: Sink
    detect: Callable[[Url], bool]


_FORMATS = {
    entry.name: entry
    for entry in (
        Format(luma.FORMAT, luma.LumaSource, luma.write_luma, checkpoint.exists),
        Format(
            torch_adamw.FORMAT,
            torch_adamw.TorchAdamWSource,
            torch_adamw.write_torch_adamw,
            lambda url: local_path(url).is_file(),
        ),
    )
}


def format_names() -> tuple[str, ...]:
    """Return the names of all formats, sorted."""
    return tuple(sorted(_FORMATS))


def _format(argument: str, name: str) -> Format:
    if name not in _FORMATS:
        raise ConfigurationError(
            f"{argument}={name!r} is not a format.", hint=f"Formats: {', '.join(format_names())}."
        )
    return _FORMATS[name]


def open_source(url: Url, *, format: str | None = None) -> Source:
    """Open AdamW state for reading one parameter at a time.

    Args:
        url: a LUMA checkpoint's folder, or a ``torch.save`` file of AdamW state.
        format: one of `format_names`; detected by default.

    Raises:
        CheckpointNotFoundError: nothing there is in a known format.
        ConfigurationError: no format has that name.
        ConversionError: it is there, but not as AdamW state that can be read.
        CorruptCheckpointError: it is damaged.
    """
    if format is not None:
        return _format("format", format).source(url)
    for entry in _FORMATS.values():
        if entry.detect(url):
            return entry.source(url)
    raise CheckpointNotFoundError(
        f"{os.fspath(url)}: no optimizer state here.",
        hint="Give the folder of a LUMA checkpoint (it has a luma.json), or a torch.save file of "
        "AdamW state.",
    )


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        parameters: number of parameters.
        elements: their elements.
        source_bytes: size of the state where it came from.
        result_bytes: size of the state where it went.
        source_format: format it was in.
        target_format: format it is in now.
        destination: where it went.
    """

    parameters: int
    elements: int
    source_bytes: int
    result_bytes: int
    source_format: str
    target_format: str
    destination: str


def convert(
    src: Url,
    dst: Url,
    *,
    to: str,
    overwrite: bool = False,
    block_size: int | None = 128,
    compression: str = "zstd",
    seed: int = 0,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert AdamW state from one format to another, one parameter at a time.

    Converting LUMA to AdamW and back with the same ``block_size`` restores every value bit for bit.

    Args:
        src: where the state is; its format is detected.
        dst: where it shall go: a folder for ``"luma"``, a file for ``"adamw"``.
        to: ``"luma"`` or ``"adamw"``.
        overwrite: whether to replace what is at ``dst``.
        block_size: for ``"luma"``: elements per scale, or None for one scale per tensor.
        compression: for ``"luma"``: ``"zstd"`` or ``"none"``.
        seed: for ``"luma"``: of the rounding noise of later steps.
        progress: called with bytes done and in total.

    Raises:
        CheckpointNotFoundError: there is no state at ``src``.
        CheckpointExistsError: something is at ``dst`` and ``overwrite`` is False.
        ConfigurationError: an option has a value that cannot work.
        ConversionError: the state cannot be read, or not be represented.
        CorruptCheckpointError: the state is damaged.
        StorageError: the store failed; what was at ``dst`` is whole.
    """
    target = _format("to", to)
    source = open_source(src)
    options = SinkOptions(
        overwrite=overwrite, block_size=block_size, compression=compression, seed=seed
    )
    result_bytes = target.sink(source, dst, options, progress)
    parameters = source.parameters()
    return ConversionReport(
        parameters=len(parameters),
        elements=total_elements(parameters),
        source_bytes=source.stored_bytes,
        result_bytes=result_bytes,
        source_format=source.format,
        target_format=target.name,
        destination=os.fspath(dst),
    )
