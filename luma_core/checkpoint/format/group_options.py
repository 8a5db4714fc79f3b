"""Options of parameter groups in a manifest: their JSON form, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luma_core.checkpoint.format.extra import flatten_plain, restore_extra
from luma_core.errors import ConfigurationError, CorruptCheckpointError
from luma_core.state import GroupOptions

if TYPE_CHECKING:
    from torch import Tensor


def plain_options(index: int, group: GroupOptions) -> GroupOptions:
    """Return the JSON form of a parameter group's options; `restored_options` undoes it.

    Raises:
        ConfigurationError: one cannot be kept exactly; names group and option.
    """
    found = {}
    for key, value in group.items():
        place = f"param_groups[{index}][{key!r}]"
        if type(key) is not str:
            raise ConfigurationError(f"{place}: names of options must be strings.")
        found[key] = flatten_plain(value, place)
    return found


def restored_options(group: GroupOptions, where: str) -> GroupOptions:
    """Return the options whose JSON form a manifest has.

    Raises:
        CorruptCheckpointError: there are none.
        UnsupportedVersionError: one is of a kind that is not known here.
    """
    return {key: restore_extra(value, _no_tensor, where) for key, value in group.items()}


def _no_tensor(name: str) -> Tensor:
    raise CorruptCheckpointError(f"a parameter group's option names the tensor {name!r}.")
