"""Names inside a checkpoint: which are safe, and which are ours."""

from __future__ import annotations

import re
from typing import Literal

from luma_core.errors import UnsafeNameError

MANIFEST_NAME = "luma.json"
INDEX_NAME = "model.safetensors.index.json"

ShardKind = Literal["optimizer", "model", "extra"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHARD_NAME = re.compile(
    r"(?:optimizer|model|extra)-(?:g([1-9]\d*)-)?\d{5,}-of-\d{5,}\.safetensors"
)


def is_safe_name(name: object) -> bool:
    """Return whether `check_name` takes ``name``."""
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if it is one safe path component: of a run, a step or a file.

    Raises:
        UnsafeNameError: it is not a string of 1 to 200 letters, digits, ``.``, ``_`` and ``-`` that
            begins with a letter or digit. So ``..``, separators and absolute paths are refused.
    """
    if not is_safe_name(name):
        raise UnsafeNameError(
            f"the name {name!r} is not safe: a name must be 1 to 200 letters, digits, '.', '_' or "
            "'-', and begin with a letter or digit."
        )
    return name


def shard_name(kind: ShardKind, generation: int, index: int, count: int) -> str:
    """Return the file name of shard ``index`` (from 1) of ``count``.

    A checkpoint that replaces another in the same folder has a larger generation, so its shards
    never overwrite files the old manifest still refers to.
    """
    middle = "" if generation == 1 else f"g{generation}-"
    return f"{kind}-{middle}{index:05d}-of-{count:05d}.safetensors"


def shard_generation(name: str) -> int | None:
    """Return the generation in a shard's name, or ``None`` where it is no shard's name."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None:
        return None
    return int(match[1] or 1)
