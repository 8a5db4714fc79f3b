"""Optimizer states that commands read: checkpoints as they are, foreign files as float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from luma_core import checkpoint, convert
from luma_core.codecs import FP32
from luma_core.convert.base import algorithm_of
from luma_core.errors import ConfigurationError
from luma_core.state import GroupOptions, ParameterState, StateSource, field_key


class ForeignState:
    """AdamW state of a foreign format, seen as parameters whose moments are kept in float32."""

    def __init__(self, source: convert.Source) -> None:
        self.source = source
        self.algorithm = algorithm_of(source)
        self._infos = {info.name: info for info in source.parameters()}

    def parameter_names(self) -> Sequence[str]:
        return list(self._infos)

    def group_options(self) -> Sequence[GroupOptions]:
        return self.source.groups()

    def parameter_state(self, name: str) -> ParameterState:
        info = self._infos[name]
        if not info.has_state:
            return ParameterState(info.name, info.shape, info.dtype, info.group)
        moments = self.source.read(name).moments
        return ParameterState(
            info.name,
            info.shape,
            info.dtype,
            info.group,
            step=info.step,
            codecs=dict.fromkeys(moments, FP32()),
            fields={field_key(moment, "value"): value for moment, value in moments.items()},
        )


@contextmanager
def open_state(path: str) -> Iterator[StateSource]:
    """Open a checkpoint folder, or a file of AdamW state.

    Raises:
        CheckpointNotFoundError: there is neither.
        LumaError: it cannot be read.
    """
    if checkpoint.exists(path):
        with checkpoint.open(path) as opened:
            yield opened
    else:
        yield ForeignState(convert.open_source(path))


def require_match(source: StateSource, pattern: str | None) -> None:
    """Check that a pattern chooses any parameter at all.

    Raises:
        ConfigurationError: none matches.
    """
    from fnmatch import fnmatchcase

    names = source.parameter_names()
    if pattern is not None and not any(fnmatchcase(name, pattern) for name in names):
        example = f", such as {names[0]!r}" if names else ""
        raise ConfigurationError(
            f"--param {pattern!r} matches none of the {len(names)} parameters{example}.",
            hint="Use * for any characters, in quotes so that the shell leaves it alone.",
        )
