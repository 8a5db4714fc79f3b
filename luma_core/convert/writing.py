"""The state dict that sinks of PyTorch's layout write."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from luma_core.convert.base import MOMENTS, OptimizerState, ParameterInfo, Progress, Source
from luma_core.errors import ConversionError
from luma_core.optim.state_io.interchange import adamw_group, torch_extras
from luma_core.optim.state_io.saved_options import SHARED_OPTIONS
from luma_core.rules.nadamw import MOMENTUM_DECAY

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
    "nus",
    # PyTorch's NAdam has it, where it is a number: `adamw_group`.
    MOMENTUM_DECAY,
}


def require_names(source: Source, format: str) -> None:
    """Refuse a source whose parameters have no names.

    Raises:
        ConversionError: saying how to give them.
    """
    if not source.named:
        raise ConversionError(
            f"{format} keeps state by parameter name, and the source has no names.",
            hint="Give the model with --model (model= in Python).",
        )


def adamw_state_dict(
    source: Source, scratch: IO[bytes], progress: Progress | None, *, by_name: bool = False
) -> dict[str, Any]:
    """Return ``torch.optim.AdamW``'s state dict of a source, moments in float32.

    The moments are mapped from the file ``scratch``, so that no more of them need be in memory at
    once than the system has room for.

    Args:
        source: of the state.
        scratch: a file open for reading and writing.
        progress: called with bytes done and in total.
        by_name: whether parameters are keyed by name and not counted.
    """
    return {
        "state": _decoded(source, scratch, progress, by_name),
        "param_groups": param_groups(source, by_name=by_name),
    }


def _decoded(
    source: Source, scratch: IO[bytes], progress: Progress | None, by_name: bool
) -> dict[int | str, dict[str, Any]]:
    parameters, groups = source.parameters(), source.groups()
    total = sum(_moment_bytes(info) for info in parameters)
    state: dict[int | str, dict[str, Any]] = {}
    done = 0
    for index, (info, found) in _read_ahead(source):
        entry = {"step": torch.tensor(float(info.step), device="cpu")}
        for moment in MOMENTS:
            entry[moment] = _parked(found.moments[moment], scratch)
        entry.update(torch_extras(groups[info.group], info.step))
        state[info.name if by_name else index] = entry
        done += _moment_bytes(info)
        if progress is not None:
            progress(done, total)
    return state


def _read_ahead(source: Source) -> Iterator[tuple[int, tuple[ParameterInfo, OptimizerState]]]:
    """Yield a source's parameters that have state, each read while the one before is in use."""
    stateful = [(index, info) for index, info in enumerate(source.parameters()) if info.has_state]
    with ThreadPoolExecutor(1, "luma-read-ahead") as thread:
        ahead: Future[OptimizerState] | None = None
        for place, (index, info) in enumerate(stateful):
            found = source.read(info.name) if ahead is None else ahead.result()
            following = stateful[place + 1 : place + 2]
            ahead = thread.submit(source.read, following[0][1].name) if following else None
            yield index, (info, found)


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


def param_groups(source: Source, *, by_name: bool) -> list[dict[str, Any]]:
    """Return ``torch.optim.AdamW``'s parameter groups of a source, with options it does not know.

    Args:
        source: of the state.
        by_name: whether parameters are listed by name and not counted.
    """
    parameters = source.parameters()
    groups = []
    for index, options in enumerate(source.groups()):
        members = [i for i, info in enumerate(parameters) if info.group == index]
        kept = {
            # Files of torch.save with NumPy's scalars cannot be read without running code.
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in options.items()
            if key not in _LUMA_OPTIONS and key not in SHARED_OPTIONS
        }
        names = [parameters[i].name for i in members]
        group = {**adamw_group(options), **kept, "params": names if by_name else members}
        if source.named and not by_name:
            group["param_names"] = names
        groups.append(group)
    return groups
