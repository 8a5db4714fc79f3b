"""DeepSpeed's universal checkpoints as a sink: state beside the model's weights in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from luma_core.convert.base import (
    MOMENTS,
    ConvertOptions,
    OptimizerState,
    ParameterInfo,
    Progress,
    Source,
    Url,
    Written,
    total_elements,
)
from luma_core.convert.formats.deepspeed import MODEL_STATES
from luma_core.convert.formats.universal import (
    FORMAT,
    INFO,
    OPTIMIZER_STATE,
    PARAM,
    PARAMETERS,
    global_state,
    is_universal,
    parameter_folder,
    stored_step,
    stored_tensor,
    universal_folder,
)
from luma_core.convert.model_files import nested_weights, safetensors_parts, weights_file
from luma_core.convert.names import plain_name, with_plain_names
from luma_core.convert.places import Folder
from luma_core.convert.targets import write_folder
from luma_core.convert.torch_file import load_torch_file
from luma_core.convert.writing import param_groups, require_names
from luma_core.errors import ConfigurationError, ConversionError

# What DeepSpeed itself marks such checkpoints with: it refuses older ones, or ones without.
_DS_VERSION = "0.19.8"
_INFO = {"universal_checkpoint_version": 0.4}

_KEPT = ("dynamic_loss_scale", "overflow", "clip_grad", "ds_version")


def write_universal(
    source: Source, destination: Url, options: ConvertOptions, progress: Progress | None, /
) -> Written:
    """Write a folder that ``engine.load_checkpoint`` takes with ``load_universal``.

    Weights come from ``options.model``: a safetensors file, its index, a ``torch.save`` file of
    the model's state dict, a folder with one of these, or a universal checkpoint, from which what
    else DeepSpeed keeps is taken as well.

    Raises:
        ConfigurationError: no model was given.
        CheckpointExistsError: something is there and may not be replaced.
        ConversionError: the parameters have no names, the model lacks one, or steps of one group
            differ.
    """
    if options.model is None:
        raise ConfigurationError(
            f"to={FORMAT!r} needs model=, the weights that belong to the state.",
            hint="Give them with --model: a safetensors file or its folder, or a universal "
            "checkpoint to write a copy of.",
        )
    require_names(source, FORMAT)
    steps = _group_steps(source)
    model = options.model

    def fill(folder: Path, _scratch: IO[bytes]) -> None:
        with ExitStack() as opened:
            template = universal_folder(model) if is_universal(model) else None
            if template is None:
                weight = _weights(model, opened)
                _save_model_states(source, steps, folder)
            else:
                weight = _template_weights(template)
                _copy_model_states(template, folder)
            step_kind = _step_kind(template, source)
            _save_parameters(source, weight, folder, step_kind, progress)
            counted = [step_kind(step) for step in steps]
            _save_global_state(source, counted, template, folder)

    last = f"{PARAMETERS}/{OPTIMIZER_STATE}"
    return write_folder(destination, options, fill, own=_is_own, last=last)


def _is_own(name: str) -> bool:
    return name == PARAMETERS or name.endswith("_model_states.pt")


def _group_steps(source: Source) -> list[int]:
    """Return each group's step; DeepSpeed has no more than one."""
    steps: list[set[int]] = [set() for _ in source.groups()]
    for info in source.parameters():
        if not info.has_state:
            raise ConversionError(f"{info.name!r} has no state, which {FORMAT} cannot express.")
        steps[info.group].add(info.step)
    for index, found in enumerate(steps):
        if len(found) > 1:
            raise ConversionError(
                f"parameters of group {index} have the steps {', '.join(map(str, sorted(found)))}; "
                "DeepSpeed loads only state of one step for each group."
            )
    return [found.pop() if found else 0 for found in steps]


StepKind = Callable[[int], object]
"""Makes a step as an optimizer counts: ``torch.optim`` in tensors, DeepSpeed's own in integers."""

Weights = Callable[[ParameterInfo], Tensor]
"""Gives a parameter's weight in float32."""


def _weights(model: Url, opened: ExitStack) -> Weights:
    """Return what reads weights; files stay open as long as ``opened``."""
    file = weights_file(model)
    found: dict[str, Callable[[], Tensor]] = {}
    if file.name.endswith((".safetensors", ".json")):
        from safetensors import safe_open

        for part in safetensors_parts(file):
            part.required_bytes()
            path = opened.enter_context(part.local())
            content: Any = opened.enter_context(safe_open(path, framework="pt"))
            found.update({key: _reader(content, key) for key in content.keys()})  # noqa: SIM118
    else:
        tensors = nested_weights(load_torch_file(file), str(file))
        found = {key: _constant(x) for key, x in tensors.items()}

    known = with_plain_names(found)

    def weight(info: ParameterInfo) -> Tensor:
        read = known.get(info.name, known.get(plain_name(info.name)))
        if read is None:
            raise ConversionError(f"{file} has no {info.name!r}.")
        x = read()
        if tuple(x.shape) != info.shape:
            raise ConversionError(
                f"{file}: {info.name!r} has shape {list(x.shape)}; its state has "
                f"{list(info.shape)}."
            )
        return x.float()

    return weight


def _reader(content: Any, key: str) -> Callable[[], Tensor]:
    return lambda: content.get_tensor(key)


def _constant(x: Tensor) -> Callable[[], Tensor]:
    return lambda: x


def _template_weights(template: Folder) -> Weights:
    def weight(info: ParameterInfo) -> Tensor:
        file = parameter_folder(template, info.name).file("fp32.pt")
        return stored_tensor(file, info.shape).float()

    return weight


def _save_parameters(
    source: Source,
    weight: Weights,
    folder: Path,
    step_kind: StepKind,
    progress: Progress | None,
) -> None:
    parameters = source.parameters()
    total, done = 8 * total_elements(parameters), 0
    for info in parameters:
        if "/" in info.name or info.name in ("", ".", "..") or "\0" in info.name:
            raise ConversionError(f"{info.name!r} cannot be the name of a folder.")
        found: OptimizerState = source.read(info.name)
        own = folder / PARAMETERS / info.name
        own.mkdir(parents=True)
        tensors = {"fp32": weight(info), **{key: found.moments[key] for key in MOMENTS}}
        for key, x in tensors.items():
            torch.save({PARAM: x.contiguous(), "cat_dim": 0}, own / f"{key}.pt")
        torch.save(step_kind(info.step), own / "step.pt")
        done += 8 * found.exp_avg.numel()
        if progress is not None:
            progress(done, total)


def _step_kind(template: Folder | None, source: Source) -> StepKind:
    """Return what makes steps of the kind that the template's optimizer counts in."""
    first = next(iter(source.parameters()), None)
    if template is None or first is None:
        return _torch_step
    files = parameter_folder(template, first.name)
    kept = stored_step(global_state(template), first.group, files)
    return int if isinstance(kept, int) else _torch_step


def _torch_step(step: int) -> Tensor:
    return torch.tensor(float(step), device="cpu")


def _save_model_states(source: Source, steps: list[int], folder: Path) -> None:
    shapes: list[dict[str, torch.Size]] = [{} for _ in source.groups()]
    for info in source.parameters():
        shapes[info.group][info.name] = torch.Size(info.shape)
    content = {
        "module": {},
        "param_shapes": shapes,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "global_steps": max(steps, default=0),
        "skipped_steps": 0,
        "ds_version": _DS_VERSION,
        INFO: dict(_INFO),
    }
    folder.mkdir()
    for name in MODEL_STATES:
        torch.save(content, folder / name)


def _copy_model_states(template: Folder, folder: Path) -> None:
    folder.mkdir()
    for name in template.names():
        if name.endswith("_model_states.pt"):
            with template.file(name).local() as path:
                shutil.copyfile(path, folder / name)


def _save_global_state(
    source: Source, steps: list[object], template: Folder | None, folder: Path
) -> None:
    kept = {} if template is None else global_state(template)
    plain = {key: kept[key] for key in _KEPT if isinstance(kept.get(key), bool | int | float | str)}
    groups = param_groups(source, by_name=True)
    for index, (group, step) in enumerate(zip(groups, steps, strict=True)):
        group["params"] = [index]
        if isinstance(step, int):
            group["step"] = step
    content = {
        "ds_version": _DS_VERSION,
        **plain,
        "param_groups": groups,
        # Where ZeRO-3 looks for the same.
        "optimizer_state_dict": {
            "state": {index: {"step": step} for index, step in enumerate(steps)},
            "param_groups": groups,
        },
    }
    torch.save(content, folder / PARAMETERS / OPTIMIZER_STATE)
