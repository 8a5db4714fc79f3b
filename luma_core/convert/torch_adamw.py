"""``torch.save`` files of ``torch.optim.AdamW.state_dict()``."""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from luma_core.checkpoint.local import LocalWriter, local_path, make_folder
from luma_core.checkpoint.store import storage_errors
from luma_core.convert.base import (
    MOMENTS,
    AdamWState,
    ParameterInfo,
    Progress,
    SinkOptions,
    Source,
)
from luma_core.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConversionError,
    UnsafePickleError,
)
from luma_core.optim.interchange import (
    ADAMW_OPTIONS,
    adamw_group,
    check_moment_kind,
    check_moment_values,
    checked_step,
    shared_options,
)
from luma_core.state import GroupOptions

FORMAT = "adamw"

_NESTS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")
_REQUIRED_OPTIONS = ("lr", "betas", "eps", "weight_decay")
_DROPPED_OPTIONS = {
    "params",
    "param_names",
    "amsgrad",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
}
_LUMA_OPTIONS = {
    "codecs",
    "parameter_codecs",
    "min_compress_elements",
    "stochastic_rounding",
    "nonfinite",
    "capturable",
    "seed",
    "max_grad_norm",
    "trust_clip",
    "always_adapt",
    "bias_correction",
}


class TorchAdamWSource:
    """AdamW state from a ``torch.save`` file, mapped and not read whole.

    The state dict may lie in the file as it is or under ``optimizer``, ``optimizer_state_dict``,
    ``optimizer_states`` (a list of one) or ``optim``. Parameters are named by ``param_names`` where
    the groups have them, by their keys where those are strings, else ``param.<i>``.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no plain AdamW state; says what is wrong where.
    """

    format = FORMAT

    def __init__(self, url: str | os.PathLike[str]) -> None:
        path = local_path(url)
        if not path.is_file():
            raise CheckpointNotFoundError(f"{path}: there is no such file.")
        self._where = str(path)
        with storage_errors(self._where):
            self.stored_bytes = path.stat().st_size
            content = _load(path)
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._parameters: dict[str, ParameterInfo] = {}
        state_dict = _find_state_dict(content, self._where)
        self._groups = [
            self._group_options(index, group)
            for index, group in enumerate(state_dict["param_groups"])
        ]
        self.named = all(map(_has_names, state_dict["param_groups"]))
        self._collect(state_dict)

    def groups(self) -> Sequence[GroupOptions]:
        return self._groups

    def parameters(self) -> Sequence[ParameterInfo]:
        return list(self._parameters.values())

    def read(self, name: str) -> AdamWState:
        """Return one parameter's moments.

        Raises:
            ConversionError: a value is NaN or infinite, or a second moment is negative.
        """
        exp_avg, exp_avg_sq = (self._entries[name][moment].float() for moment in MOMENTS)
        for moment, value in zip(MOMENTS, (exp_avg, exp_avg_sq), strict=True):
            check_moment_values(f"{self._where}: {name!r}", moment, value)
        return AdamWState(self._parameters[name], exp_avg, exp_avg_sq)

    def _group_options(self, index: int, group: Mapping[str, Any]) -> GroupOptions:
        place = f"{self._where}: param_groups[{index}]"
        for key in _REQUIRED_OPTIONS:
            if key not in group:
                raise ConversionError(
                    f"{place} has no {key!r}; it has {', '.join(map(repr, group))}.",
                    hint="Only the state of torch.optim.AdamW can be read.",
                )
        if group.get("decoupled_weight_decay", True) is False and group["weight_decay"] != 0:
            raise ConversionError(
                f"{place} is Adam with weight_decay={group['weight_decay']} added to the gradient, "
                "which AdamW cannot continue.",
                hint="Only the state of torch.optim.AdamW can be read.",
            )
        plain = {
            key: _plain_option(value, f"{place}[{key!r}]")
            for key, value in group.items()
            if key not in _DROPPED_OPTIONS
        }
        try:
            shared_options({**plain, "amsgrad": group.get("amsgrad")})
        except (ConfigurationError, ConversionError) as error:
            raise ConversionError(f"{place}: {error.message}", hint=error.hint) from error
        return {"maximize": False, **plain, "betas": list(plain["betas"])}

    def _collect(self, state_dict: Mapping[str, Any]) -> None:
        state = state_dict["state"]
        known: set[Any] = set()
        for index, group in enumerate(state_dict["param_groups"]):
            names = group.get("param_names")
            for position, key in enumerate(group["params"]):
                name = names[position] if names else _name_of(key, len(self._parameters))
                if name in self._parameters:
                    raise ConversionError(f"{self._where}: the name {name!r} is used twice.")
                known.add(key)
                self._parameters[name] = self._checked(name, index, state.get(key))
                self._entries[name] = state[key]
        stray = [key for key in state if key not in known]
        if stray:
            raise ConversionError(
                f"{self._where}: there is state for {stray[0]!r}, which no parameter group lists."
            )

    def _checked(self, name: str, group: int, entry: Any) -> ParameterInfo:
        place = f"{self._where}: {name!r}"
        if not entry:
            raise ConversionError(
                f"{place} has no state, so its shape is not known.",
                hint="Give the optimizer only parameters that get gradients, and take a step.",
            )
        _check_keys(place, entry)
        step = checked_step(place, entry["step"])
        shapes = [check_moment_kind(place, moment, entry[moment]) for moment in MOMENTS]
        if shapes[0] != shapes[1]:
            raise ConversionError(
                f"{place}: exp_avg has shape {list(shapes[0])}, exp_avg_sq {list(shapes[1])}; "
                "they must be equal."
            )
        dtype = str(entry["exp_avg"].dtype).removeprefix("torch.")
        return ParameterInfo(name, shapes[0], dtype, group, step, has_state=True)


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # What cannot be read raises; what can be needs no warning.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        told = str(error)
        if "weights_only" in told and "global" in told.lower():
            raise UnsafePickleError(
                f"{path}: reading it would run code that it contains.",
                hint="Save it again with torch.save(optimizer.state_dict(), ...), tensors and "
                "plain values only.",
            ) from error
        if "Unsupported operand" in told:
            raise UnsafePickleError(
                f"{path}: pickled in a way that cannot be read without running code.",
                hint="Save it again with torch.save(optimizer.state_dict(), ...), with torch's own "
                "pickle_protocol.",
            ) from error
        raise ConversionError(f"{path}: not a file of torch.save, or a damaged one.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConversionError(
            f"{path}: not a file of torch.save, or a damaged one ({type(error).__name__})."
        ) from error


def _is_zip(path: Path) -> bool:
    """Whether the file is in torch's present format; the one before 2020 cannot be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _find_state_dict(content: Any, where: str) -> Mapping[str, Any]:
    found = content
    if isinstance(content, dict) and "param_groups" not in content:
        found = next((content[key] for key in _NESTS if key in content), content)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not (
        isinstance(found, dict)
        and isinstance(found.get("state"), dict)
        and isinstance(found.get("param_groups"), list)
    ):
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, dict) else "no keys"
        raise ConversionError(
            f"{where}: no optimizer state dict ('state' and 'param_groups') in it: {keys}.",
            hint="Save it with torch.save(optimizer.state_dict(), ...).",
        )
    for index, group in enumerate(found["param_groups"]):
        params = group.get("params") if isinstance(group, dict) else None
        names = group.get("param_names") if isinstance(group, dict) else None
        if not _are_keys(params) or (names is not None and not _fits(names, params)):
            raise ConversionError(
                f"{where}: param_groups[{index}] must be a dict with a list 'params' of integers "
                "or strings and, if it has 'param_names', one string for each."
            )
    return found


def _are_keys(params: Any) -> bool:
    return isinstance(params, list) and all(isinstance(key, int | str) for key in params)


def _fits(names: Any, params: Any) -> bool:
    return (
        isinstance(names, list)
        and len(names) == len(params)
        and all(isinstance(name, str) for name in names)
    )


def _has_names(group: Mapping[str, Any]) -> bool:
    return bool(group.get("param_names")) or all(isinstance(key, str) for key in group["params"])


def _name_of(key: Any, position: int) -> str:
    return key if isinstance(key, str) else f"param.{position}"


def _plain_option(value: Any, place: str) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{place} is {value!r}; it must be a plain finite value.") from error


def _check_keys(place: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ConversionError(f"{place}: the state is a {type(entry).__name__}, not a dict.")
    if "max_exp_avg_sq" in entry:
        raise ConversionError(
            f"{place} has 'max_exp_avg_sq': amsgrad's running maximum cannot be represented.",
            hint="Only plain AdamW state can be converted.",
        )
    expected = {"step", *MOMENTS}
    if set(entry) != expected:
        raise ConversionError(
            f"{place} has {', '.join(sorted(map(repr, entry)))}; AdamW's state is "
            f"{', '.join(sorted(map(repr, expected)))}."
        )


def write_torch_adamw(
    source: Source,
    destination: str | os.PathLike[str],
    options: SinkOptions,
    progress: Progress | None,
    /,
) -> int:
    """Write what ``torch.optim.AdamW.load_state_dict`` loads, moments in float32.

    The moments wait in a scratch file beside the destination, mapped into memory, so that no more
    of them need be in memory at once than the system has room for.
    """
    path = local_path(destination)
    if path.is_dir():
        raise CheckpointExistsError(f"{path}: is a folder; AdamW state is one file.")
    if path.exists() and not options.overwrite:
        raise CheckpointExistsError(
            f"{path}: there is a file already.",
            hint="Choose another destination, or allow it to be overwritten.",
        )
    with storage_errors(str(path)):
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent) as scratch, LocalWriter(path) as out:
            state_dict = {
                "state": _decoded(source, scratch, progress),
                "param_groups": _param_groups(source),
            }
            torch.save(state_dict, cast(IO[bytes], out))
            out.commit()
        return path.stat().st_size


def _decoded(
    source: Source, scratch: IO[bytes], progress: Progress | None
) -> dict[int, dict[str, Any]]:
    parameters = source.parameters()
    total = sum(_moment_bytes(info) for info in parameters)
    state: dict[int, dict[str, Any]] = {}
    done = 0
    for index, info in enumerate(parameters):
        if not info.has_state:
            continue
        found = source.read(info.name)
        state[index] = {"step": torch.tensor(float(info.step))}
        for moment in MOMENTS:
            state[index][moment] = _parked(getattr(found, moment), scratch)
        done += _moment_bytes(info)
        if progress is not None:
            progress(done, total)
    return state


def _moment_bytes(info: ParameterInfo) -> int:
    return 8 * math.prod(info.shape) if info.has_state else 0


def _parked(x: Tensor, scratch: IO[bytes]) -> Tensor:
    """Return ``x`` as a tensor mapped from the end of the file ``scratch``."""
    if not x.numel():
        return x.clone()
    offset = scratch.seek(0, os.SEEK_END)
    # Written and not stored through the map: there a full disk would kill the process.
    scratch.write(x.contiguous().numpy().data)
    scratch.flush()
    mapped = np.memmap(scratch, np.float32, "c", offset, tuple(x.shape) or (1,))
    return torch.from_numpy(mapped).view(x.shape)


def _param_groups(source: Source) -> list[dict[str, Any]]:
    parameters = source.parameters()
    groups = []
    for index, options in enumerate(source.groups()):
        members = [i for i, info in enumerate(parameters) if info.group == index]
        kept = {
            key: value
            for key, value in options.items()
            if key not in _LUMA_OPTIONS and key not in ADAMW_OPTIONS
        }
        group = {**adamw_group(options), **kept, "params": members}
        if source.named:
            group["param_names"] = [parameters[i].name for i in members]
        groups.append(group)
    return groups
