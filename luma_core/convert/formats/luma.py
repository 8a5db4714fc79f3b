"""LUMA checkpoints as a source and a sink of optimizer state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

from torch import Tensor

from luma_core import checkpoint
from luma_core.checkpoint.format.lazy_fields import LazyFields
from luma_core.codecs import MIN_COMPRESS_ELEMENTS, parameter_codecs
from luma_core.convert.base import (
    MOMENTS,
    ConvertOptions,
    OptimizerState,
    ParameterInfo,
    Progress,
    Source,
    Url,
    Written,
    algorithm_of,
)
from luma_core.convert.codecs import target_codecs
from luma_core.convert.coding_errors import CodingErrors
from luma_core.convert.names import namer_of
from luma_core.convert.state_dict import Namer
from luma_core.errors import ConversionError
from luma_core.optim.state_io.adamw_entry import check_moment_values
from luma_core.optim.state_io.interchange import encode_state
from luma_core.rounding import parameter_key
from luma_core.rules.registry import rule_of
from luma_core.state import GroupOptions, ParameterState, field_key

FORMAT = "luma"

_TORCH_ADAMW = "torch.AdamW"
"""PyTorch's own, whose checkpoints keep ``step`` beside the moments."""


class LumaSource:
    """Optimizer state decoded from a LUMA checkpoint.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CorruptCheckpointError: its manifest cannot be trusted.
        ConversionError: it holds other moments than its algorithm's.
    """

    format = FORMAT

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._checkpoint = checkpoint.open(url)
        manifest = self._checkpoint.manifest
        self.algorithm = "adamw" if manifest.algorithm == _TORCH_ADAMW else manifest.algorithm
        self.named = manifest.named
        self.stored_bytes = manifest.summary.stored_bytes
        rule = rule_of(self.algorithm)
        self._moments: list[tuple[str, ...]] = [
            MOMENTS if rule is None else rule.for_group(group).moment_names
            for group in self._checkpoint.group_options()
        ]
        counters = {"step"} if manifest.algorithm == _TORCH_ADAMW else set()
        for entry in manifest.parameters:
            moments = self._moments[entry.group]
            if entry.codecs and set(entry.codecs) - counters != set(moments):
                raise ConversionError(
                    f"{self._checkpoint.url}: {entry.name!r} has the moments "
                    f"{', '.join(sorted(entry.codecs))}, and must have {' and '.join(moments)}.",
                    hint=f"The state is of the algorithm {manifest.algorithm!r}.",
                )

    def groups(self) -> Sequence[GroupOptions]:
        return self._checkpoint.group_options()

    def parameters(self) -> Sequence[ParameterInfo]:
        return self._parameters

    @cached_property
    def _parameters(self) -> list[ParameterInfo]:
        return [
            ParameterInfo(
                entry.name, entry.shape, entry.dtype, entry.group, entry.step, bool(entry.codecs)
            )
            for entry in self._checkpoint.manifest.parameters
        ]

    @cached_property
    def _by_name(self) -> dict[str, ParameterInfo]:
        return {info.name: info for info in self._parameters}

    def read(self, name: str) -> OptimizerState:
        info = self._by_name[name]
        names = self._moments[info.group]
        moments = {moment: self._checkpoint.read(name, moment) for moment in names}
        return OptimizerState(info, moments)


def open_luma(url: Url, model: Url | None = None) -> Source:
    """Open a LUMA checkpoint; a model gives names where it was saved without.

    Raises:
        ConversionError: the model does not tell the names; or as for `LumaSource`.
    """
    source = LumaSource(url)
    namer = None if source.named else namer_of(model)
    return source if namer is None else NamedSource(source, namer)


class NamedSource:
    """A source whose parameters get names.

    Raises:
        ConversionError: the model does not tell the names.
    """

    named = True

    def __init__(self, source: Source, namer: Namer) -> None:
        self._source = source
        self.format = source.format
        self.algorithm = algorithm_of(source)
        self.stored_bytes = source.stored_bytes
        counted = source.parameters()
        names = namer.names(
            [
                [info.shape for info in counted if info.group == index]
                for index in range(len(source.groups()))
            ]
        )
        self._names = dict(zip(names or (), counted, strict=True))

    def groups(self) -> Sequence[GroupOptions]:
        return self._source.groups()

    def parameters(self) -> Sequence[ParameterInfo]:
        return [replace(info, name=name) for name, info in self._names.items()]

    def read(self, name: str) -> OptimizerState:
        found = self._source.read(self._names[name].name)
        return OptimizerState(replace(found.info, name=name), found.moments)


class EncodedState:
    """A source's state as our optimizers keep it, coded by rounding to nearest when it is used."""

    def __init__(
        self, source: Source, *, block_size: int | None, seed: int, codec: str = "luma16"
    ) -> None:
        algorithm = algorithm_of(source)
        targets = [
            target_codecs(codec, block_size=block_size, algorithm=algorithm, group=options)
            for options in source.groups() or [{}]
        ]
        self.algorithm = targets[0].algorithm
        self.errors = CodingErrors(self.algorithm)
        # Adam-mini's codecs of single parameters end with it; Muon goes on with its own.
        rule = rule_of(algorithm)
        goes_on = rule is not None and rule.moment_names != MOMENTS
        dropped = set() if goes_on else {"parameter_codecs"}
        self._source = source
        self.named = source.named
        self._infos = {info.name: info for info in source.parameters()}
        self._groups = [
            {
                "min_compress_elements": MIN_COMPRESS_ELEMENTS,
                "stochastic_rounding": True,
                "nonfinite": "skip",
                "capturable": False,
                **{key: value for key, value in options.items() if key not in dropped},
                "seed": seed,
                "codecs": target.codecs,
            }
            for options, target in zip(source.groups(), targets, strict=False)
        ]

    def parameter_names(self) -> Sequence[str]:
        return list(self._infos)

    def group_options(self) -> Sequence[GroupOptions]:
        return self._groups

    def parameter_state(self, name: str) -> ParameterState:
        info = self._infos[name]
        head = ParameterState(info.name, info.shape, info.dtype, info.group)
        if not info.has_state:
            return head
        options = self._groups[info.group]
        codecs = parameter_codecs(options, info.name, info.shape)
        keys = [
            field_key(moment, field)
            for moment, codec in codecs.items()
            for field in codec.layout(info.shape)
        ]
        encoded = _Encoded(self._source, head, options, self.errors)
        return ParameterState(
            info.name,
            info.shape,
            info.dtype,
            info.group,
            step=info.step,
            noise_key=parameter_key(options["seed"], info.name),
            codecs=codecs,
            fields=LazyFields(keys, lambda key: encoded.fields[key], keep=False),
        )


class _Encoded:
    """Codes one parameter when the first of its fields is needed."""

    def __init__(
        self, source: Source, head: ParameterState, options: GroupOptions, errors: CodingErrors
    ) -> None:
        self._source = source
        self._head = head
        self._options = options
        self._errors = errors

    @cached_property
    def fields(self) -> Mapping[str, Tensor]:
        found = self._source.read(self._head.name)
        moments = found.moments
        for moment, value in moments.items():
            check_moment_values(repr(self._head.name), moment, value)
        state = encode_state(self._head, self._options, step=found.info.step, moments=moments)
        self._errors.measure(state, moments, self._options)
        return state.fields


def write_luma(
    source: Source,
    destination: str | os.PathLike[str],
    options: ConvertOptions,
    progress: Progress | None,
    /,
) -> Written:
    """Write a LUMA checkpoint with default options; its groups record the seed."""
    state = EncodedState(
        source, block_size=options.block_size, seed=options.seed, codec=options.codec
    )
    manifest = checkpoint.save(
        destination,
        optimizer=state,
        options=checkpoint.SaveOptions(
            compression=cast(checkpoint.Compression, options.compression),
            overwrite=options.overwrite,
            progress=progress,
        ),
    )
    return Written(manifest.summary.stored_bytes, state.errors.by_moment(), state.errors.update())
