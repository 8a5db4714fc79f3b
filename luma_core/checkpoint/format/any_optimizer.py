"""The state of any optimizer of PyTorch's kind, or of several, to be saved and loaded as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn, optim

from luma_core.checkpoint.format.generic_state import flatten_state, restored_state, steps_of
from luma_core.errors import ConfigurationError, StateMismatchError, UnsupportedParameterError
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.offload import LoadArena
from luma_core.optim.state_io.adoption import adopt
from luma_core.optim.state_io.entries import StateDevices
from luma_core.optim.state_io.plan import LoadPlan, plan_loading
from luma_core.optim.state_io.saved_groups import group_names
from luma_core.optim.state_io.sources import OwnParameter, Source
from luma_core.sharding import as_dtensor, is_flattened, is_sharded, local_tensor
from luma_core.state import GroupOptions, LoadReport, MatchedState, ParameterState

AnyOptimizers = optim.Optimizer | Sequence[optim.Optimizer] | Mapping[str, optim.Optimizer]
"""An optimizer of PyTorch's kind, or several."""

OPTIMIZER_KEY = "luma_optimizer"
"""Option of saved groups: which of several optimizers the group is of."""

_NOT_SAVED = frozenset({"params", "param_names"})
_PARAMETER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Member(NamedTuple):
    """One of the optimizers.

    Attributes:
        label: its key or index among several; None where it is the only one.
        optimizer: as PyTorch steps it.
        prefix: of its parameters' names.
    """

    label: str | None
    optimizer: optim.Optimizer
    prefix: str


class AnyOptimizer:
    """Optimizers whose state is kept as it is: tensors by parameter and key, groups as values.

    Args:
        members: one, or several.
        model: names the parameters whose groups do not.
    """

    def __init__(self, members: Sequence[Member], model: nn.Module | None) -> None:
        self.members = tuple(members)
        kinds = [_with_label(member, _kind(member.optimizer)) for member in members]
        self.algorithm = " + ".join(kinds)
        self.param_groups = [group for m in members for group in m.optimizer.param_groups]
        names = _names(self.members, model)
        self.named = names is not None
        params = [param for group in self.param_groups for param in group["params"]]
        chosen = [f"param.{i}" for i in range(len(params))] if names is None else names
        rows = [
            (index, member)
            for index, (member, group) in enumerate(self._groups())
            for _ in group["params"]
        ]
        self._own: dict[str, tuple[Tensor, int, Member]] = {}
        for name, param, (index, member) in zip(chosen, params, rows, strict=True):
            if name in self._own:
                raise ConfigurationError(f"the parameter name {name!r} is used more than once.")
            self._own[name] = (param, index, member)
        _check_parameters(self.parameters_by_name(), self.members)

    def _groups(self) -> Iterator[tuple[Member, dict[str, Any]]]:
        for member in self.members:
            for group in member.optimizer.param_groups:
                yield member, group

    def parameter_names(self) -> list[str]:
        """Return the names of all parameters, group by group."""
        return list(self._own)

    def parameters_by_name(self) -> Iterator[OwnParameter]:
        """Yield every parameter with its name and group, group by group."""
        for name, (param, index, _) in self._own.items():
            yield name, param, self.param_groups[index]

    def parameter_state(self, name: str) -> ParameterState:
        """Return the state of one parameter; its tensors are references."""
        param, index, member = self._own[name]
        state = member.optimizer.state.get(param, {})
        codecs, fields = flatten_state(name, param, state)
        return ParameterState(
            name=name,
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            group=index,
            step=steps_of(state),
            codecs=codecs,
            fields=fields,
        )

    def parameter_states(self) -> list[ParameterState]:
        """Return the state of every parameter, group by group."""
        return [self.parameter_state(name) for name in self._own]

    def group_options(self) -> list[GroupOptions]:
        """Return the options of each group; tensors of one element as numbers."""
        found = []
        for member, group in self._groups():
            options = {key: _number(value) for key, value in group.items() if key not in _NOT_SAVED}
            if member.label is not None:
                options[OPTIMIZER_KEY] = member.label
            found.append(options)
        return found

    def state_devices(self, param: Tensor) -> StateDevices:
        """Return where state is brought to: the parameter's device."""
        device = local_tensor(param).device
        return StateDevices(device, device)

    def incoming_state(self, states: Sequence[MatchedState]) -> LoadArena | None:
        """Return None: what is read becomes the state."""
        return None

    def matched_states(
        self,
        groups: Sequence[GroupOptions],
        states: Sequence[ParameterState],
        *,
        algorithm: str,
        named: bool,
        strict: bool,
        where: str,
    ) -> list[MatchedState]:
        """Return which states would be loaded into which parameters.

        Raises:
            StateMismatchError: algorithm, groups or names do not fit.
        """
        plan = self._plan(groups, states, algorithm, named, strict, where)
        return [
            MatchedState(item.own[0], states[item.index], states[item.index].codecs)
            for item in plan.taken
            if item.index is not None
        ]

    def load_parameter_states(
        self,
        groups: Sequence[GroupOptions],
        states: list[ParameterState],
        *,
        incoming: LoadArena | None,
        algorithm: str,
        named: bool,
        strict: bool,
    ) -> LoadReport:
        """Replace all state by ``states``, through each optimizer's own ``load_state_dict``.

        Raises:
            StateMismatchError: it does not fit; nothing was changed.
        """
        plan = self._plan(groups, states, algorithm, named, strict, "the checkpoint")
        entries: dict[str, dict[str, Any]] = {}
        for item in plan.taken:
            if item.index is not None and states[item.index].codecs:
                name, param, group = item.own
                entries[name] = _own_entry(restored_state(states[item.index], name), param, group)
        adopted = iter(plan.adopted)
        for member in self.members:
            mine = [next(adopted) for _ in member.optimizer.param_groups]
            names = [name for name, (_, _, owner) in self._own.items() if owner is member]
            _load_member(member.optimizer, mine, [entries.get(name) for name in names])
        self.param_groups = [group for _, group in self._groups()]
        return plan.report

    def _plan(
        self,
        groups: Sequence[GroupOptions],
        states: Sequence[ParameterState],
        algorithm: str,
        named: bool,
        strict: bool,
        where: str,
    ) -> LoadPlan:
        if algorithm != self.algorithm:
            raise StateMismatchError(
                f"{where}: state of {algorithm!r} cannot be loaded into {self.algorithm!r}.",
                hint="Give the kind of optimizer that was saved, or convert it with luma convert.",
            )
        source = _States(algorithm, groups, states, named=named, where=where)
        plan = plan_loading(cast(Any, self), source, strict=strict)
        for item in plan.taken:
            saved = None if item.index is None else groups[states[item.index].group]
            label = self._own[item.own[0]][2].label
            if saved is not None and saved.get(OPTIMIZER_KEY) != label:
                raise StateMismatchError(
                    f"{item.own[0]!r}: its state is of optimizer {saved.get(OPTIMIZER_KEY)!r} in "
                    f"{where}; here it is of {label!r}."
                )
        return plan


class _States(Source):
    """States that are kept as they are."""

    def __init__(
        self,
        algorithm: str,
        groups: Sequence[GroupOptions],
        states: Sequence[ParameterState],
        *,
        named: bool,
        where: str,
    ) -> None:
        names, members = [state.name for state in states], [state.group for state in states]
        super().__init__(algorithm, groups, names, members, named=named)
        self.where = where
        self._states = states

    def has_state(self, index: int) -> bool:
        return bool(self._states[index].codecs)

    def fits(self, index: int, own: OwnParameter) -> bool:
        return self._states[index].shape == tuple(own[1].shape)

    def state(self, index: int, own: OwnParameter) -> ParameterState:
        return self._states[index]


def state_of_any(optimizer: Any, model: nn.Module | None = None) -> Any:
    """Return what saves and loads an optimizer: itself where it is one of LUMA or a checkpoint.

    Args:
        optimizer: one, wrapped or not; a list or tuple of them, or a dict.
        model: names parameters whose groups have no names for them.

    Raises:
        ConfigurationError: it is no optimizer, or holds one that must be saved on its own.
        UnsupportedParameterError: a parameter is of a dtype, or cut in a way, that cannot be kept.
    """
    if isinstance(optimizer, Mapping):
        some = [Member(str(key), _plain(value), f"{key}.") for key, value in optimizer.items()]
        return AnyOptimizer(sorted(_several(some), key=lambda member: str(member.label)), model)
    if isinstance(optimizer, list | tuple):
        some = [Member(str(i), _plain(value), "") for i, value in enumerate(optimizer)]
        return AnyOptimizer(_several(some), model)
    found = unwrapped_optimizer(optimizer)
    if isinstance(found, optim.Optimizer) and not hasattr(found, "parameter_state"):
        return AnyOptimizer([Member(None, found, "")], model)
    return found


def memory_owner(state: Any) -> Any:
    """Return what keeps the memory of copies: an optimizer, which outlives what saves it."""
    return state.members[0].optimizer if isinstance(state, AnyOptimizer) else state


def unwrapped_optimizer(optimizer: Any) -> Any:
    """Return the optimizer within wrappers that keep it as ``optimizer``, as Accelerate's.

    Raises:
        ConfigurationError: it is one of DeepSpeed's that cut parameters into flat ones.
    """
    seen = set()
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        if "zero" in type(optimizer).__name__.lower():
            raise ConfigurationError(
                f"optimizer is a {type(optimizer).__name__}, which keeps flat parts of parameters.",
                hint="Save it with engine.save_checkpoint, and convert that with luma convert.",
            )
        if id(inner) in seen:
            break
        seen.add(id(inner))
        optimizer = inner
    return optimizer


def _plain(optimizer: Any) -> optim.Optimizer:
    found = unwrapped_optimizer(optimizer)
    if not isinstance(found, optim.Optimizer) or isinstance(found, CompressedOptimizer):
        raise ConfigurationError(
            f"a {type(found).__name__} among several optimizers must be one of PyTorch's kind, and "
            "none of LUMA.",
            hint="Save it in a checkpoint of its own.",
        )
    return found


def _several(members: list[Member]) -> list[Member]:
    if not members:
        raise ConfigurationError("optimizer is empty; it must hold one optimizer or more.")
    return members


def _kind(optimizer: optim.Optimizer) -> str:
    kind = type(optimizer)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _with_label(member: Member, kind: str) -> str:
    return kind if member.label is None else f"{member.label}: {kind}"


def _names(members: Sequence[Member], model: nn.Module | None) -> list[str] | None:
    """Return the parameters' own names; None where some have none."""
    known = {} if model is None else {id(param): name for name, param in model.named_parameters()}
    found: list[str] = []
    for member in members:
        for group in member.optimizer.param_groups:
            names = group_names(group)
            if names is None and all(id(param) in known for param in group["params"]):
                names = [known[id(param)] for param in group["params"]]
            if names is None:
                return None
            found += [f"{member.prefix}{name}" for name in names]
    return found


def _check_parameters(params: Iterable[OwnParameter], members: Sequence[Member]) -> None:
    known = set()
    for name, param, _ in params:
        known.add(param)
        if is_flattened(param):
            raise UnsupportedParameterError(
                f"parameter {name!r} is a flat one of FullyShardedDataParallel, cut anywhere.",
                hint="Use fully_shard, or torch.distributed.checkpoint.",
            )
        if param.dtype not in _PARAMETER_DTYPES and any(
            param in m.optimizer.state for m in members
        ):
            raise UnsupportedParameterError(
                f"parameter {name!r} is of dtype {param.dtype}; state is kept for parameters of "
                "float32, bfloat16, float16 and float64."
            )
    for member in members:
        stray = [key for key in member.optimizer.state if key not in known]
        if stray:
            what = type(stray[0]).__name__ if isinstance(stray[0], Tensor) else repr(stray[0])
            raise ConfigurationError(
                f"the state of {_kind(member.optimizer)} has an entry for {what}, which is no "
                "parameter of its groups.",
                hint="Save it with torch.save.",
            )


def _number(value: Any) -> Any:
    """Return a tensor of one element as a number; a float32 one is exact in a float."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _own_entry(entry: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's entry with tensors where its optimizer has them."""
    device = local_tensor(param).device
    step = entry.get("step")
    if isinstance(step, Tensor) and not (group.get("capturable") or group.get("fused")):
        entry["step"] = step.cpu()
    for key, value in entry.items():
        if is_sharded(value):
            local = local_tensor(value).to(device)
            shape, mesh = tuple(value.shape), value.device_mesh
            entry[key] = as_dtensor(local, shape, mesh, tuple(value.placements))
    return entry


def _load_member(
    optimizer: optim.Optimizer,
    adopted: Sequence[GroupOptions],
    entries: Sequence[dict[str, Any] | None],
) -> None:
    """Load through the optimizer's own way, and put back dtypes that PyTorch's changes."""
    groups = []
    params = [param for group in optimizer.param_groups for param in group["params"]]
    numbers = iter(range(len(params)))
    for group, options in zip(optimizer.param_groups, adopted, strict=True):
        found = {key: value for key, value in group.items() if key != "params"}
        adopt(found, {key: value for key, value in options.items() if key != OPTIMIZER_KEY})
        groups.append({**found, "params": [next(numbers) for _ in group["params"]]})
    state = {index: entry for index, entry in enumerate(entries) if entry is not None}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for param, entry in zip(params, entries, strict=True):
        loaded = optimizer.state.get(param, {})
        for key in loaded.keys() & (entry or {}).keys():
            loaded[key] = _with_saved_dtypes(loaded[key], (entry or {})[key])


def _with_saved_dtypes(loaded: Any, saved: Any) -> Any:
    """Return a loaded value with the dtypes that were saved, on the devices that it is on."""
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        changed = loaded.dtype != saved.dtype
        return saved.to(local_tensor(loaded).device) if changed else loaded
    if type(loaded) is not type(saved):
        return loaded
    if type(loaded) is dict and loaded.keys() == saved.keys():
        return {key: _with_saved_dtypes(value, saved[key]) for key, value in loaded.items()}
    if type(loaded) in (list, tuple) and len(loaded) == len(saved):
        return type(loaded)(map(_with_saved_dtypes, loaded, saved))
    return loaded
