"""DeepSpeed's ZeRO checkpoints, read from the shards of all ranks without DeepSpeed.

Stages 1 and 2 flatten each parameter group and cut the result by rank; ``param_slice_mappings``
tells where a parameter lies in a shard. Stage 3 cuts each parameter by rank in equal parts, the
last one padded, in the order of ``param_shapes``.
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
from luma_core.convert.places import File, Folder, folder_at
from luma_core.convert.state_dict import Entry, StateDictSource, check_held, moments_entry
from luma_core.convert.torch_file import load_torch_file
from luma_core.errors import CheckpointNotFoundError, ConversionError
from luma_core.optim.state_io.adamw_entry import check_moment_kind

FORMAT = "deepspeed"

MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""Names of the file that has the parameters' shapes: with ZeRO-1 and 2, and with ZeRO-3."""

_LATEST = "latest"
_MAX_LATEST_BYTES = 4096
_SHARD = re.compile(r"(?:(?:bf|fp)16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
Shape = tuple[int, ...]


class _Record:
    """Stands for a class of DeepSpeed's whose values are attributes."""

    numel: int
    start: int


_CLASSES = [
    (_Record, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Record, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Record, "deepspeed.utils.tensor_fragment.fragment_address"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


@dataclass(frozen=True)
class _RankParts:
    """One parameter: its pieces by moment, in the order of the ranks."""

    shape: Shape
    pieces: Mapping[str, list[Tensor]]

    def read(self, moment: str) -> Tensor:
        flat = torch.cat([piece.float() for piece in self.pieces[moment]])
        return flat[: math.prod(self.shape)].view(self.shape)


def is_deepspeed(url: Url) -> bool:
    """Whether it is the folder of a DeepSpeed run, or one step of it, with shards of ZeRO."""
    try:
        return bool(_shards(step_folder(folder_at(url), _LATEST)))
    except ConversionError:
        return False


def open_deepspeed(url: Url, model: Url | None = None) -> Source:  # noqa: ARG001 - it has names
    """Open the state in a folder of ``engine.save_checkpoint``, of ZeRO stage 1, 2 or 3.

    Args:
        url: the folder of one step, or the one above it, whose file ``latest`` names the step.
        model: not needed: DeepSpeed keeps names.

    Raises:
        CheckpointNotFoundError: a file is missing.
        UnsafePickleError: reading it would run code it contains.
        ConversionError: it holds no AdamW state, or model parallelism cut it.
    """
    folder = step_folder(folder_at(url), _LATEST)
    found = _shards(folder)
    if not found:
        raise CheckpointNotFoundError(f"{folder.where}: no optimizer states of ZeRO here.")
    if any(tensor_rank for _, tensor_rank in found):
        raise ConversionError(
            f"{folder.where}: model parallelism cut it, which only DeepSpeed can put together.",
            hint="Only state that is cut by ZeRO alone can be read.",
        )
    if sorted(found) != [(rank, 0) for rank in range(len(found))]:
        raise CheckpointNotFoundError(f"{folder.where}: the shards of some ranks are missing.")
    stored_bytes = sum(file.required_bytes() for file in found.values())
    content = _state_dict(folder, [_loaded(found[key]) for key in sorted(found)])
    return StateDictSource(
        content, where=folder.where, stored_bytes=stored_bytes, format=FORMAT, decoder=_decode
    )


def step_folder(folder: Folder, latest_name: str) -> Folder:
    """Return the folder of the step that a file in ``folder`` names; itself without that file.

    Raises:
        ConversionError: it names no folder beside it.
    """
    latest = folder.file(latest_name)
    if not latest.is_there():
        return folder
    name = latest.read(0, _MAX_LATEST_BYTES).decode(errors="replace").strip()
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConversionError(f"{latest}: {name!r} is not the name of a folder beside it.")
    return folder.folder(name)


def _shards(folder: Folder) -> dict[tuple[int, int], File]:
    """Return the files of optimizer states by data and model parallel rank."""
    matches = {name: _SHARD.fullmatch(name) for name in folder.names()}
    return {
        (int(found[1]), int(found[2])): folder.file(name)
        for name, found in matches.items()
        if found
    }


def load_deepspeed_file(file: File) -> Any:
    """Return what a file of DeepSpeed's holds; the errors are those of ``torch.save`` files."""
    with torch.serialization.safe_globals(list(_CLASSES)):
        return load_torch_file(file)


def _loaded(file: File) -> Mapping[str, Any]:
    content = load_deepspeed_file(file)
    found = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise ConversionError(f"{file}: no 'optimizer_state_dict' in it.")
    return found


def _state_dict(folder: Folder, ranks: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a state dict by name of `_RankParts`.

    Raises:
        ConversionError: a part is missing, or parts do not fit each other.
    """
    shapes = parameter_shapes(folder)
    try:
        stage3 = "fp32_flat_groups" in ranks[0]
        kept = [
            rank["optimizer_state_dict" if stage3 else "base_optimizer_state"] for rank in ranks
        ]
        if len(kept[0]["state"]) != len(shapes):
            raise ValueError(f"{len(kept[0]['state'])} flat states for {len(shapes)} groups")
        state: dict[str, Any] = {}
        for index, names in enumerate(shapes):
            cut = _cut_stage_3 if stage3 else _cut_stages_1_2
            for name, pieces in cut(index, names, ranks, kept).items():
                step = kept[0]["state"][index]["step"]
                state[name] = {"step": step, "pieces": _RankParts(names[name], pieces)}
        groups = [dict(group) for group in kept[0]["param_groups"]]
        for group, names in zip(groups, shapes, strict=True):
            group["params"] = list(names)
            group.pop("param_names", None)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConversionError(
            f"{folder.where}: its shards are not as ZeRO makes them "
            f"({type(error).__name__}: {error})."
        ) from error
    return {"state": state, "param_groups": groups}


def parameter_shapes(folder: Folder) -> list[dict[str, Shape]]:
    """Return each group's parameters from a file of model states.

    Raises:
        CheckpointNotFoundError: there is no such file.
        ConversionError: it does not tell them.
    """
    for name in MODEL_STATES:
        file = folder.file(name)
        if file.is_there():
            try:
                groups = load_deepspeed_file(file)["param_shapes"]
                return [
                    {key: _checked_shape(shape) for key, shape in group.items()} for group in groups
                ]
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
                raise ConversionError(f"{file}: no shapes of parameters in it.") from error
    raise CheckpointNotFoundError(
        f"{folder.where}: no model states, which have the parameters' shapes."
    )


def _checked_shape(shape: Any) -> Shape:
    found = tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in found):
        raise TypeError(f"{shape!r} is not a shape")
    return found


def _flat(own: Mapping[str, Any], index: int, moment: str) -> Tensor:
    flat = own["state"][index][moment]
    check_moment_kind(f"group {index}", moment, flat)
    check_held(f"{moment} of group {index}", flat)
    return cast(Tensor, flat)


def _cut_stages_1_2(
    index: int, shapes: Mapping[str, Shape], ranks: list[Mapping[str, Any]], kept: list[Any]
) -> dict[str, dict[str, list[Tensor]]]:
    found: dict[str, dict[str, list[Tensor]]] = {
        name: {moment: [] for moment in MOMENTS} for name in shapes
    }
    for rank, own in zip(ranks, kept, strict=True):
        for name, where in rank["param_slice_mappings"][index].items():
            for moment in MOMENTS:
                flat = _flat(own, index, moment)
                found[name][moment].append(flat.narrow(0, where.start, where.numel))
    for name, shape in shapes.items():
        for moment, pieces in found[name].items():
            if sum(map(len, pieces)) != math.prod(shape):
                raise ValueError(f"{moment} of {name!r} is not there in whole")
    return found


def _cut_stage_3(
    index: int, shapes: Mapping[str, Shape], ranks: list[Mapping[str, Any]], kept: list[Any]
) -> dict[str, dict[str, list[Tensor]]]:
    found: dict[str, dict[str, list[Tensor]]] = {}
    start = 0
    for name, shape in shapes.items():
        part = -(-math.prod(shape) // len(ranks))
        found[name] = {
            moment: [_flat(own, index, moment).narrow(0, start, part) for own in kept]
            for moment in MOMENTS
        }
        start += part
    return found


def _decode(place: str, entry: Any) -> Entry | None:
    pieces: _RankParts = entry["pieces"]
    head = torch.empty((), device="cpu").expand(pieces.shape)
    return moments_entry(
        place,
        entry["step"],
        [head, head],
        lambda: (pieces.read(MOMENTS[0]), pieces.read(MOMENTS[1])),
    )
