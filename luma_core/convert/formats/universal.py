"""DeepSpeed's universal checkpoints, read and written without DeepSpeed.

``zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt`` hold one parameter each, whole;
``zero/optimizer_state.pt`` has the groups' options and ``*_model_states.pt`` tells which parameters
are in which group. What comes of ZeRO-1 or 2 wraps tensors as ``{"param": x, "cat_dim": 0}``; what
comes of ZeRO-3 has them flat, and one step for all in ``optimizer_state.pt``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS, Source, Url
from luma_core.convert.formats.deepspeed import (
    MODEL_STATES,
    Shape,
    load_deepspeed_file,
    parameter_shapes,
    step_folder,
)
from luma_core.convert.places import File, Folder, folder_at
from luma_core.convert.state_dict import Entry, StateDictSource, check_held, moments_entry
from luma_core.errors import ConversionError
from luma_core.optim.state_io.adamw_entry import check_moment_kind

FORMAT = "deepspeed-universal"

LATEST = "latest_universal"
PARAMETERS = "zero"
OPTIMIZER_STATE = "optimizer_state.pt"
PARAM = "param"
INFO = "universal_checkpoint_info"

_OF_OTHER_RANKS = re.compile(r"mp_rank_(?!00_)\d+_model_states\.pt")
_VOCABULARY = "vocabulary_parameter_patterns"


def is_universal(url: Url) -> bool:
    """Whether it is a universal checkpoint, or a folder whose ``latest_universal`` names one."""
    try:
        return _global_file(universal_folder(url)).is_there()
    except ConversionError:
        return False


def universal_folder(url: Url) -> Folder:
    """Return the folder of a universal checkpoint, which ``latest_universal`` may name.

    Raises:
        ConversionError: ``latest_universal`` names no folder beside it.
    """
    return step_folder(folder_at(url), LATEST)


def open_universal(url: Url, model: Url | None = None) -> Source:  # noqa: ARG001 - it has names
    """Open the state in a universal checkpoint; moments are read one parameter at a time.

    Args:
        url: its folder, or the one above it with a file ``latest_universal``.
        model: not needed: DeepSpeed keeps names.

    Raises:
        CheckpointNotFoundError: a file is missing.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no AdamW state.
    """
    folder = universal_folder(url)
    shared = global_state(folder)
    try:
        groups = [dict(group) for group in shared["param_groups"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{_global_file(folder)}: no groups of parameters in it.") from error
    shapes = parameter_shapes(folder)
    if len(groups) != len(shapes):
        raise ConversionError(
            f"{folder.where}: {len(groups)} groups of options for {len(shapes)} of parameters."
        )
    whole = not _cut_by_models(folder)
    state: dict[str, _Parameter] = {}
    for index, (group, names) in enumerate(zip(groups, shapes, strict=True)):
        group["params"] = list(names)
        group.pop("param_names", None)
        for name, shape in names.items():
            files = parameter_folder(folder, name)
            state[name] = _Parameter(
                files, shape if whole else None, stored_step(shared, index, files)
            )
        group.pop("step", None)
    return StateDictSource(
        {
            "state": {name: {"parameter": kept} for name, kept in state.items()},
            "param_groups": groups,
        },
        where=folder.where,
        stored_bytes=sum(kept.stored_bytes for kept in state.values()),
        format=FORMAT,
        decoder=_decode,
    )


def _global_file(folder: Folder) -> File:
    return folder.folder(PARAMETERS).file(OPTIMIZER_STATE)


def global_state(folder: Folder) -> Mapping[str, Any]:
    """Return what a universal checkpoint has for all parameters together.

    Raises:
        CheckpointNotFoundError: the file is missing.
        ConversionError: it is something else.
    """
    found = load_deepspeed_file(_global_file(folder))
    if not isinstance(found, dict):
        raise ConversionError(f"{_global_file(folder)}: is not a dict.")
    return found


def parameter_folder(folder: Folder, name: str) -> Folder:
    """Return the folder with one parameter's files.

    Raises:
        ConversionError: ``name`` cannot be that of a folder.
    """
    parameters = folder.folder(PARAMETERS)
    return parameters.folder(parameters.file(name).name)


def stored_tensor(file: File, shape: Shape | None) -> Tensor:
    """Return a parameter's tensor from its file.

    Args:
        file: ``fp32.pt`` or that of a moment.
        shape: of the parameter; None takes the one in the file.

    Raises:
        CheckpointNotFoundError: the file is missing.
        ConversionError: it holds something else, or not as many values.
    """
    found = load_deepspeed_file(file)
    if isinstance(found, dict):
        found = found.get(PARAM)
    check_moment_kind(str(file), "the value", found)
    check_held(str(file), found)
    tensor = cast(Tensor, found)
    if shape is not None and tensor.numel() != math.prod(shape):
        raise ConversionError(
            f"{file}: {tensor.numel()} values for a parameter of shape {list(shape)}."
        )
    return tensor if shape is None else tensor.reshape(shape)


def _cut_by_models(folder: Folder) -> bool:
    """Whether model parallelism or padded vocabularies make shapes differ from the model's own."""
    if any(map(_OF_OTHER_RANKS.fullmatch, folder.names())):
        return True
    files = (folder.file(name) for name in MODEL_STATES)
    file = next((file for file in files if file.is_there()), None)
    found = load_deepspeed_file(file) if file else None
    info = found.get(INFO) if isinstance(found, dict) else None
    return isinstance(info, dict) and bool(info.get(_VOCABULARY))


def stored_step(shared: Mapping[str, Any], group: int, files: Folder) -> object:
    """Return the step of a parameter as its optimizer counts it: an integer or a tensor.

    Args:
        shared: what `global_state` returns.
        group: index of the parameter's group.
        files: the parameter's folder.

    Raises:
        ConversionError: there is none.
    """
    own = files.file("step.pt")
    if own.is_there():
        return load_deepspeed_file(own)
    try:
        options = shared["param_groups"][group]
        if "step" in options:
            return options["step"]
        return shared["optimizer_state_dict"]["state"][group]["step"]
    except (KeyError, IndexError, TypeError) as error:
        raise ConversionError(f"{files.where}: no step for it, nor for its group.") from error


@dataclass(frozen=True)
class _Parameter:
    """One parameter; ``shape`` is None where only its files tell."""

    files: Folder
    shape: Shape | None
    step: object

    def file(self, moment: str) -> File:
        return self.files.file(f"{moment}.pt")

    @property
    def stored_bytes(self) -> int:
        return sum(self.file(moment).required_bytes() for moment in MOMENTS)

    def read(self, moment: str) -> Tensor:
        return stored_tensor(self.file(moment), self.shape).float()

    def head(self) -> Tensor:
        """Return a tensor of the parameter's shape that takes no memory."""
        shape = self.shape
        if shape is None:
            shape = tuple(stored_tensor(self.file(MOMENTS[0]), None).shape)
        return torch.empty((), device="cpu").expand(shape)


def _decode(place: str, entry: Any) -> Entry | None:
    kept: _Parameter = entry["parameter"]
    head = kept.head()
    return moments_entry(
        place, kept.step, [head, head], lambda: (kept.read(MOMENTS[0]), kept.read(MOMENTS[1]))
    )
