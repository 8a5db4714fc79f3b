"""The conversion between any two formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Unpack

from luma_core.convert.base import (
    ConvertKeywords,
    ConvertOptions,
    MomentError,
    Progress,
    Source,
    Url,
    require_adamw,
    total_elements,
)
from luma_core.convert.coding_errors import warn_of_errors
from luma_core.convert.formats import lightning, luma, universal
from luma_core.convert.places import resolved
from luma_core.convert.registry import (
    detect_format,
    find_format,
    format_names,
    source_names,
    target_names,
)
from luma_core.errors import CheckpointNotFoundError, ConfigurationError
from luma_core.keywords import merge_keywords, show_keywords, with_keywords


def _no_format(argument: str, name: str, names: tuple[str, ...]) -> ConfigurationError:
    what = "read" if argument == "format" else "written"
    known = "cannot be " + what if name in format_names() else "is not a format"
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
    named = None if format is None else find_format(format)
    if format is not None and (named is None or named.source is None):
        raise _no_format("format", format, source_names())
    place, weights = resolved(url), None if model is None else resolved(model)
    found = named or detect_format(place)
    if found is not None and found.source is not None:
        return found.source(place, weights)
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
        update: what it changed in the update, for AdamW ``m_hat / (sqrt(v_hat) + eps)``, which
            tells how wrong the next step is; likewise.
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
    """Convert optimizer state from one format to another, one parameter at a time.

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
    options = merge_keywords("convert", ConvertOptions, options, keywords)
    found = find_format(to)
    sink = found.sink if found is not None else None
    if sink is None:
        raise _no_format("to", to, target_names())
    place, model = resolved(dst), None if options.model is None else resolved(options.model)
    options = replace(options, model=model)
    source = open_source(src, model=model if _gives_names(model, to) else None)
    if to != luma.FORMAT:
        require_adamw(source, to)
    written = sink(source, place, options, progress)
    warn_of_errors(written.errors, written.update)
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
