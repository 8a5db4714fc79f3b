"""Where an optimizer keeps its state: the options and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from luma_core.errors import ConfigurationError
from luma_core.paths import resolve_path

MODES = ("host", "disk", "cpu-step", "auto")
DEFAULT_BUFFER_BYTES = 256 << 20
_LEAST_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class OffloadOptions:
    """Where state lives.

    Attributes:
        mode: one of ``MODES``.
        directory: of files, in the mode ``"disk"``; absolute.
        buffer_bytes: device memory for state, or host memory with state on disk.
    """

    mode: str
    directory: Path | None
    buffer_bytes: int


def offload_options(
    offload: str | None, directory: str | PathLike[str] | None, buffer_bytes: int
) -> OffloadOptions | None:
    """Check an optimizer's three options, and return them together.

    Raises:
        ConfigurationError: one of them cannot work.
    """
    if offload is not None and offload not in MODES:
        raise ConfigurationError(
            f"offload={offload!r} must be None or one of {', '.join(map(repr, MODES))}.",
            hint="'auto' chooses among the others by what it measures.",
        )
    if directory is not None and not isinstance(directory, str | PathLike):
        raise ConfigurationError(
            f"offload_directory={directory!r} must be a str or a path.",
            hint="Name a directory of a local disk with room for the state.",
        )
    if offload == "disk" and directory is None:
        raise ConfigurationError(
            "offload='disk' needs offload_directory.",
            hint="Name a directory of a local disk with room for the state.",
        )
    if directory is not None and offload not in ("disk", "auto"):
        raise ConfigurationError(
            f"offload_directory={str(directory)!r} has no meaning with offload={offload!r}.",
            hint="Use offload='disk', or leave the directory out.",
        )
    whole = isinstance(buffer_bytes, int) and not isinstance(buffer_bytes, bool)
    if not whole or buffer_bytes < _LEAST_BUFFER_BYTES:
        raise ConfigurationError(
            f"offload_buffer_bytes={buffer_bytes!r} must be an integer of {_LEAST_BUFFER_BYTES:,} "
            "or more.",
            hint=f"The default is {DEFAULT_BUFFER_BYTES:,}.",
        )
    if offload is None:
        return None
    place = None if directory is None else resolve_path(directory)
    return OffloadOptions(offload, place, buffer_bytes)
