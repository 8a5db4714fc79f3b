"""Formats by name, and the conversion between any two of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Unpack

from luma_core import checkpoint
from luma_core.convert import beside_model
from luma_core.convert.base import (
    ConvertKeywords,
    ConvertOptions,
    MomentError,
    Progress,
    Sink,
    Source,
    Url,
    total_elements,
)
from luma_core.convert.coding_errors import warn_of_errors
from luma_core.convert.formats import (
    dcp,
    deepspeed,
    fsdp,
    lightning,
    luma,
    torch_adamw,
    universal,
    universal_writing,
)
from luma_core.convert.places import resolved
from luma_core.errors import CheckpointNotFoundError, ConfigurationError
from luma_core.keywords import show_keywords, with_keywords


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what it is called.
        source: opens state in it, with the model that gives names; None where it is only written.
        sink: writes it; None where it is only read.
        detect: whether a place holds it.
    """

    name: str
    source: Callable[[Url, Url | None], Source] | None
    sink: Sink | None
    detect: Callable[[Url], bool]


_FORMATS = {
    entry.name: entry
    for entry in (
        Format(luma.FORMAT, luma.open_luma, luma.write_luma, checkpoint.exists),
        Format(dcp.FORMAT, dcp.open_dcp, dcp.write_dcp, dcp.is_dcp),
        Format(
            beside_model.TRAINER, beside_model.open_trainer, None, beside_model.is_trainer_folder
        ),
        Format(
            beside_model.ACCELERATE,
            beside_model.open_accelerate,
            None,
            beside_model.is_accelerate_folder,
        ),
        Format(
            universal.FORMAT,
            universal.open_universal,
            universal_writing.write_universal,
            universal.is_universal,
        ),
        Format(deepspeed.FORMAT, deepspeed.open_deepspeed, None, deepspeed.is_deepspeed),
        Format(
            lightning.FORMAT,
            lightning.open_lightning,
            lightning.write_lightning,
            lightning.is_lightning,
        ),
        Format(
            torch_adamw.FORMAT,
            torch_adamw.open_torch_adamw,
            torch_adamw.write_torch_adamw,
            torch_adamw.is_torch_file,
        ),
        Format(fsdp.FORMAT, None, fsdp.write_fsdp, lambda _: False),
    )
}


def format_names() -> tuple[str, ...]:
    """Return the names of all formats, sorted."""
    return tuple(sorted(_FORMATS))


def target_names() -> tuple[str, ...]:
    """Return the names of the formats that can be written, sorted."""
    return tuple(name for name in format_names() if _FORMATS[name].sink)


def source_names() -> tuple[str, ...]:
    """Return the names of the formats that can be read, sorted."""
    return tuple(name for name in format_names() if _FORMATS[name].source)


def _no_format(argument: str, name: str, names: tuple[str, ...]) -> ConfigurationError:
    what = "read" if argument == "format" else "written"
    known = "cannot be " + what if name in _FORMATS else "is not a format"
    return ConfigurationError(f"{argument}={name!r} {known}.", hint=f"Formats: {', '.join(names)}.")


def open_source(url: Url, *, format: str | None = None, model: Url | None = None) -> Source:
    """Open AdamW state for reading one parameter at a time.

    Args:
        url: where the state is, in one of `source_names`; see docs/convert.md.
        format: its format; detected by default.
        model: gives parameters names where the state has none: a safetensors file, its index, a
            ``torch.save`` file of the model's state dict, or a folder with one of these.

    Raises:
        CheckpointNotFoundError: nothing there is in a known format.
        ConfigurationError: no format has that name.
        ConversionError: it is there, but not as AdamW state that can be read; or the model does
            not tell the names.
        CorruptCheckpointError: it is damaged.
    """
    if format is not None and format not in source_names():
        raise _no_format("format", format, source_names())
    place, weights = resolved(url), None if model is None else resolved(model)
    for name, entry in _FORMATS.items():
        if entry.source and (name == format or (format is None and entry.detect(place))):
            return entry.source(place, weights)
    raise CheckpointNotFoundError(
        f"{os.fspath(url)}: no optimizer state here.",
        hint="Give the folder of a LUMA checkpoint (it has a luma.json), or a torch.save file of "
        "AdamW state; docs/convert.md lists all formats.",
    )


def _gives_names(model: Url | None, to: str) -> bool:
    """Whether a model is one, and not a checkpoint to write a copy of."""
    if model is None or to == lightning.FORMAT:
        return False
    return to != universal.FORMAT or not universal.is_universal(model)


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
        errors: what coding changed, by moment; zeros where float32 was written.
        update: what it changed in AdamW's update ``m_hat / (sqrt(v_hat) + eps)``, which tells how
            wrong the next step is; likewise.
    """

    parameters: int
    elements: int
    source_bytes: int
    result_bytes: int
    source_format: str
    target_format: str
    destination: str
    errors: Mapping[str, MomentError]
    update: MomentError


def convert(
    src: Url,
    dst: Url,
    *,
    to: str,
    progress: Progress | None = None,
    options: ConvertOptions | None = None,
    **keywords: Unpack[ConvertKeywords],
) -> ConversionReport:
    """Convert AdamW state from one format to another, one parameter at a time.

    Converting LUMA to AdamW and back with the same ``block_size`` restores every value bit for bit.

    Args:
        src: where the state is; its format is detected.
        dst: where it shall go: a folder for ``"luma"``, ``"dcp"`` and ``"deepspeed-universal"``,
            else a file.
        to: one of `target_names`.
        progress: called with bytes done and in total.
        options: the keywords that follow, together; those that are given replace them.

    Raises:
        CheckpointNotFoundError: there is no state at ``src``.
        CheckpointExistsError: something is at ``dst`` and ``overwrite`` is False.
        ConfigurationError: an option has a value that cannot work.
        ConversionError: the state cannot be read, or not be represented.
        CorruptCheckpointError: the state is damaged.
        StorageError: the store failed; what was at ``dst`` is whole.
    """
    options = ConvertOptions.given_to("convert", options, keywords)
    sink = _FORMATS[to].sink if to in _FORMATS else None
    if sink is None:
        raise _no_format("to", to, target_names())
    place, model = resolved(dst), None if options.model is None else resolved(options.model)
    options = replace(options, model=model)
    source = open_source(src, model=model if _gives_names(model, to) else None)
    written = sink(source, place, options, progress)
    warn_of_errors(written.errors["exp_avg_sq"], written.update)
    parameters = source.parameters()
    return ConversionReport(
        parameters=len(parameters),
        elements=total_elements(parameters),
        source_bytes=source.stored_bytes,
        result_bytes=written.stored_bytes,
        source_format=source.format,
        target_format=to,
        destination=os.fspath(dst),
        errors=written.errors,
        update=written.update,
    )


show_keywords(convert, ConvertOptions)
convert.__doc__ = with_keywords(convert.__doc__ or "", ConvertOptions)
