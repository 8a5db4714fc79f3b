"""Names for the parameters of a state that has none, from the model that it belongs to.

Optimizers keep parameters in the order of the model, and safetensors files do not keep that order.
So names are given by shape, and only where that leaves no choice: see `assign_names`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from luma_core.convert.alignment import Shape, Wanted, align
from luma_core.convert.base import Url
from luma_core.convert.model_files import (
    config_shapes,
    listed_names,
    nested_weights,
    safetensors_parts,
    safetensors_shapes,
    weights_file,
)
from luma_core.convert.torch_file import load_torch_file
from luma_core.errors import CheckpointNotFoundError, ConversionError, some_names
from luma_core.naming import without_root

T = TypeVar("T")

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq")
_NAMES_HINT = (
    "Give --model a JSON file with a list of all the optimizer's parameter names in its order, or "
    "build the optimizer over model.named_parameters()."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelNames:
    """A model's parameters, and buffers where those cannot be told apart.

    Attributes:
        where: what they were read from.
        shapes: shapes by name.
        ordered: whether they are in the order of the model.
        tied: names of tensors that another name has already.
        listed: names of all the optimizer's parameters in its order, where they were given so.
    """

    where: str
    shapes: dict[str, Shape]
    ordered: bool
    tied: frozenset[str] = frozenset()
    listed: tuple[str, ...] | None = None

    @classmethod
    def of_tensors(cls, where: str, tensors: Mapping[str, Tensor]) -> ModelNames:
        """Return those of a state dict; what is not of floating point is no parameter."""
        kept = {name: x for name, x in tensors.items() if x.is_floating_point()}
        plain = dict(zip(plain_names(list(kept)), kept.values(), strict=True))
        return cls(
            where,
            {name: tuple(x.shape) for name, x in plain.items()},
            ordered=True,
            tied=_tied(plain),
        )


class ModelNamer:
    """Gives names from a model that is read when they are needed.

    Args:
        read: returns the model's names.
        asked: whether somebody asked for names; else parameters stay counted where they cannot be
            told, and a warning says why.
    """

    def __init__(self, read: Callable[[], ModelNames], *, asked: bool = True) -> None:
        self._read = read
        self._asked = asked

    @cached_property
    def _model(self) -> ModelNames | None:
        try:
            return self._read()
        except (CheckpointNotFoundError, ConversionError) as error:
            self._told(error)
            return None

    def _told(self, error: Exception) -> None:
        if self._asked:
            raise error
        _log.warning("Parameters are counted and not named: %s", error)

    def names(self, groups: Sequence[Sequence[Wanted]]) -> list[str] | None:
        """Return the names of all parameters by the shapes of each group's; see `assign_names`."""
        try:
            return assign_names(self._model, groups) if self._model else None
        except ConversionError as error:
            self._told(error)
            return None

    def shape(self, name: str) -> Shape | None:
        """Return the shape of the parameter of a name, wrapped or not; None if it is not known."""
        return self._shapes.get(name, self._shapes.get(plain_name(name)))

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return with_plain_names(self._model.shapes) if self._model else {}


def namer_of(model: Url | None) -> ModelNamer | None:
    """Return what gives names from a model; None without one.

    Raises:
        CheckpointNotFoundError: there is no model.
        ConversionError: it cannot be read.
    """
    if model is None:
        return None
    names = read_model_names(model)
    return ModelNamer(lambda: names)


def plain_names(names: Sequence[str]) -> list[str]:
    """Return names without those of the modules that wrap a model.

    ``module.`` is DDP's where all names begin with it.
    """
    plain = without_root(names)
    return plain if len(set(plain)) == len(plain) else list(names)


def plain_name(name: str) -> str:
    """Return a name without those of the modules that may wrap a model."""
    return without_root([name])[0]


def with_plain_names(values: Mapping[str, T]) -> dict[str, T]:
    """Return values by their names and, beside them, by their plain names."""
    return {**{plain_name(name): value for name, value in values.items()}, **values}


def _tied(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of tensors that are another name's tensor: tied weights."""
    known: set[Any] = set()
    tied = set()
    for name, x in tensors.items():
        if x.layout != torch.strided or x.is_meta or not x.numel():
            continue
        place = (x.data_ptr(), x.dtype, tuple(x.shape), x.stride())
        if place in known:
            tied.add(name)
        known.add(place)
    return frozenset(tied)


def read_model_names(model: Url) -> ModelNames:
    """Read names and shapes of a model's parameters.

    Args:
        model: a safetensors file, its index, a ``torch.save`` file of the model's state dict, or a
            folder with one of these. A ``config.json`` beside it gives the order, where
            ``transformers`` is installed and knows the model. Or a JSON file with a list of names.

    Raises:
        CheckpointNotFoundError: there is none of these.
        ConversionError: it cannot be read.
    """
    file = weights_file(model)
    if not file.name.endswith((".safetensors", ".json")):
        weights = nested_weights(load_torch_file(file), str(file))
        return ModelNames.of_tensors(str(file), weights)
    listed = listed_names(file) if file.name.endswith(".json") else None
    if listed is not None:
        return ModelNames(str(file), {}, ordered=True, listed=listed)
    shapes: dict[str, Shape] = {}
    for part in safetensors_parts(file):
        shapes.update(safetensors_shapes(part))
    of_config = config_shapes(file.folder)
    # A configuration that is not of these weights must not name anything.
    if of_config is not None and len(of_config.keys() & shapes.keys()) * 2 > len(shapes):
        return ModelNames(str(file), of_config, ordered=True)
    return ModelNames(str(file), shapes, ordered=False)


def assign_names(model: ModelNames, groups: Sequence[Sequence[Wanted]]) -> list[str]:
    """Give each parameter its name, where only one assignment is possible.

    In a model whose order is known, a shape must be of one group only, and each group must lie in
    that order: see `luma_core.convert.alignment`. Else model and state must have equally many of
    each shape; if there is more than one, they must be of one group, and their names differ in
    numbers only. Where that leaves a choice, what is named as buffers are is left out.

    Args:
        model: names and shapes.
        groups: shapes of each group's parameters, in order; None for those without state.

    Raises:
        ConversionError: the model does not fit, or more than one assignment is possible.
    """
    if model.listed is not None:
        return _listed(model, groups)
    assign = _by_order if model.ordered else _by_shape
    shapes = {name: shape for name, shape in model.shapes.items() if name not in model.tied}
    buffers = [name for name in shapes if _is_buffer(name, shapes)]
    try:
        names = assign(model.where, shapes, groups)
    except ConversionError:
        if not buffers:
            raise
        rest = {name: shape for name, shape in shapes.items() if name not in buffers}
        names = assign(model.where, rest, groups)
        _log.info("%s: %s are taken for buffers by name.", model.where, some_names(buffers))
    odd = sorted(set(names) & set(buffers))
    if odd:
        _log.warning(
            "%s: %s are parameters, though named as buffers.", model.where, some_names(odd)
        )
    return names


def _listed(model: ModelNames, groups: Sequence[Sequence[Wanted]]) -> list[str]:
    names = list(model.listed or ())
    count = sum(map(len, groups))
    if len(names) != count or len(set(names)) != count:
        raise ConversionError(
            f"{model.where} lists {len(set(names))} different names of {len(names)}; the state has "
            f"{count} parameters.",
            hint="List each parameter once: [names[p] for group in optimizer.param_groups for p in "
            "group['params']].",
        )
    return names


def _is_buffer(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether torch's modules keep a buffer by that name: of norms, and of spectral norms."""
    above, _, last = name.rpartition(".")
    if last in ("_u", "_v"):
        return "parametrizations" in above
    return last in _BUFFERS or (last[-2:] in ("_u", "_v") and f"{name[:-2]}_orig" in shapes)


def _by_order(
    where: str, shapes: Mapping[str, Shape], groups: Sequence[Sequence[Wanted]]
) -> list[str]:
    flat = [wanted for group in groups for wanted in group]
    for wanted in dict.fromkeys(flat):
        _check_count(where, shapes, flat, wanted, least=flat.count(wanted))
        if wanted is not None and sum(wanted in group for group in groups) > 1:
            same = [name for name, shape in shapes.items() if shape == wanted]
            raise ConversionError(
                f"{where}: {some_names(same)} have one shape, {list(wanted)}, and the state has it "
                "in several groups, so their names cannot be told from shapes.",
                hint=_NAMES_HINT,
            )
    found = align(shapes, groups)
    if found.misfit is not None:
        raise ConversionError(
            f"{where}: its tensors cannot be the parameters of the state, from number "
            f"{found.misfit} on: shapes do not follow each other as in the model.",
            hint=_NAMES_HINT,
        )
    if found.choices:
        raise ConversionError(
            f"{where}: {some_names(found.choices)} fit one parameter of the state, so names cannot "
            "be told from shapes and order.",
            hint=_NAMES_HINT,
        )
    return [found.names[place] for place in range(len(flat))]


def _check_count(
    where: str,
    shapes: Mapping[str, Shape],
    flat: Sequence[Wanted],
    wanted: Wanted,
    *,
    least: int,
    most: float = math.inf,
) -> None:
    """Check how many tensors have the shape of some parameters.

    Raises:
        ConversionError: fewer or more.
    """
    count = sum(shape == wanted for shape in shapes.values())
    if wanted is not None and not least <= count <= most:
        raise ConversionError(
            f"{where} has {count} parameters of shape {list(wanted)}; the state has "
            f"{flat.count(wanted)}.",
            hint="Give the model that the optimizer was built over.",
        )


def _by_shape(
    where: str, shapes: Mapping[str, Shape], groups: Sequence[Sequence[Wanted]]
) -> list[str]:
    flat = [(wanted, index) for index, group in enumerate(groups) for wanted in group]
    wanted_all = [wanted for wanted, _ in flat]
    if None in wanted_all:
        raise ConversionError(
            f"{where}: {wanted_all.count(None)} parameters have no state, so their shapes are not "
            "known, and the model's order is not known either.",
            hint=f"Save model.state_dict() with torch.save, which keeps the order. {_NAMES_HINT}",
        )
    names: dict[int, str] = {}
    for shape in dict.fromkeys(wanted_all):
        places = [i for i, other in enumerate(wanted_all) if other == shape]
        _check_count(where, shapes, wanted_all, shape, least=len(places), most=len(places))
        found = sorted((name for name, other in shapes.items() if other == shape), key=_numbers)
        one_group = len({flat[i][1] for i in places}) == 1
        one_pattern = len({re.sub(r"\d+", "0", name) for name in found}) == 1
        if len(places) > 1 and not (one_group and one_pattern):
            raise ConversionError(
                f"{where}: {some_names(found)} have one shape, {list(shape or ())}, so their names "
                "cannot be told from shapes.",
                hint="Give a folder with config.json as well (and install transformers), or a "
                "torch.save file of the model's state dict: both have the model's order.",
            )
        names.update(zip(places, found, strict=True))
    return [names[i] for i in range(len(flat))]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
