"""The base of all optimizers: owns state, parameter groups, dispatch and loading."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from luma_core import rounding
from luma_core.codecs import Codec, moment_codecs, parameter_codecs
from luma_core.errors import ConfigurationError
from luma_core.optim.offload import (
    Incoming,
    Offloader,
    OffloadOptions,
    Snapshot,
    chosen_offload,
)
from luma_core.optim.options import (
    ADAMW_KEYWORDS,
    KNOWN_OPTIONS,
    check_codecs,
    check_not_flattened,
    check_options,
    check_parameter,
    check_parameter_codecs,
    flattened_error,
    given_options,
    group_of,
    is_steppable,
)
from luma_core.optim.state_io import loading
from luma_core.optim.state_io.adoption import register
from luma_core.optim.state_io.entries import StateDevices, carried_entry
from luma_core.optim.state_io.plan import planned
from luma_core.optim.state_io.sources import OwnParameter, StatesSource, group_names
from luma_core.optim.step.backend import check_backend
from luma_core.optim.step.dry_step import is_dry
from luma_core.optim.step.stepping import Stepper
from luma_core.rules import Rule
from luma_core.sharding import local_tensor, part_of, state_of_part
from luma_core.state import (
    GroupOptions,
    LoadReport,
    MatchedState,
    ParameterState,
    field_key,
)
from luma_core.values import has_values, mode_of


class CompressedOptimizer(torch.optim.Optimizer):
    """An update rule whose moments are stored by codecs.

    State of a parameter (``optimizer.state[p]``), all tensors:

    - ``step``: int64, 0-d, on the parameter's device: completed steps;
    - ``noise_key``: int64, 0-d, CPU: selects the parameter's rounding noise (`rounding`);
    - ``nonfinite``: int64, 0-d, on the parameter's device: blocks whose new moments were not
      finite, over all steps; of a sharded parameter, those of this process's part;
    - ``<moment>.<field>``: the stored moments, as the codecs lay them out; DTensors where the
      parameter is one and the field is cut with it (`luma_core.sharding`).

    Group options are plain JSON values (``lr`` may be a tensor); ``codecs`` holds the
    configuration of each moment's codec, and ``parameter_codecs``, in optimizers that need it,
    those of single parameters by name.
    """

    algorithm: ClassVar[str]
    rule: ClassVar[Rule]
    codec_options: ClassVar[tuple[str, ...]] = ("codec", "block_size")
    """Options of a new group that choose its codecs, and are not kept beside those."""
    elementwise: ClassVar[bool] = True
    """Whether it may take a parameter for any run of its elements, as those of FSDP1 are."""

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        backend: str,
        seed: int | str | None,
        offload: OffloadOptions | None = None,
    ) -> None:
        self.backend = check_backend(backend)
        self._set_offload(offload)
        self.forget_names()
        self._shapes: set[tuple[int, ...]] = set()
        defaults = given_options({**defaults, "seed": seed})
        check_options(defaults)
        super().__init__(params, _kept(defaults))
        register(self)
        if offload is not None and offload.mode == "auto":
            self._set_offload(chosen_offload(self, offload))

    def _set_offload(self, options: OffloadOptions | None) -> None:
        self._offload = options
        fixed = options is not None and options.mode != "auto"
        self.offloader = Offloader(self, options) if fixed and options is not None else None
        # Not this itself: whoever drops an optimizer has its memory back at once.
        self._stepper = Stepper(weakref.proxy(self))

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return {**super().__getstate__(), "backend": self.backend, "_offload": self._offload}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_offload(self._offload)
        self.forget_names()
        register(self)
        self._shapes = {tuple(param.shape) for _, param, _ in self.parameters_by_name()}

    def group_codecs(self, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the codec configuration of each moment for a new group's options."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options default to the optimizer's.

        What chooses the codecs of new optimizers (``codec_options``) may stand in the group too;
        ``codecs`` gives them outright.

        Raises:
            ConfigurationError: an option cannot work; the optimizer is unchanged.
            UnsupportedParameterError: a parameter that needs gradients is of a dtype or layout that
                is not supported, or ``param_group`` is no group.
        """
        group = given_options(group_of(param_group))
        options = {**self.defaults, **group}
        check_options(options)
        codecs = options.get("codecs") or self.group_codecs(options)
        check_codecs(codecs, self.rule.moments)
        check_parameter_codecs(options.get("parameter_codecs", {}), self.rule.moments)
        taken = set(self.parameter_names())
        for index, item in enumerate(group["params"], start=len(taken)):
            name, param = item if isinstance(item, tuple) else (f"param.{index}", item)
            if name in taken:
                raise ConfigurationError(
                    f"the parameter name {name!r} is used more than once; names must differ.",
                    hint="Names are the keys under which state is saved.",
                )
            taken.add(name)
            if isinstance(param, Tensor):
                check_parameter(name, param)
                if not self.elementwise:
                    check_not_flattened(name, param, type(self).__name__)
                self._shapes.add(tuple(param.shape))
                if is_steppable(param):
                    moment_codecs(codecs, param.shape, options["min_compress_elements"])
        group["codecs"] = codecs
        for choice in self.codec_options:
            group.pop(choice, None)
        super().add_param_group(_kept(group))
        self.forget_names()
        self.forget_steps()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss.

        Raises:
            ConfigurationError: a group was given an option of AdamW that cannot work here, such as
                ``amsgrad=True``; nothing was changed.
            UnsupportedGradientError: a gradient is sparse or complex, or of a parameter of another
                dtype than float32, bfloat16 and float16; nothing was changed.
            NonFiniteGradientError: under ``nonfinite="raise"``; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    @_disable_dynamo
    def _take_step(self) -> None:
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise ConfigurationError(
                "capturable=False, but step() was called while a CUDA graph is captured.",
                hint="Build the optimizer with capturable=True and an lr tensor on the device.",
            )
        if not capturing and is_dry(self):
            self._init_state([item for item in self.parameters_by_name() if item[1].requires_grad])
            return
        self._stepper.step(
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
        )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tell GradScaler whether the kernels take its scale and skip flag, without a sync."""
        raising = any(group["nonfinite"] == "raise" for group in self.param_groups)
        return not raising and self._stepper.all_fused

    def init_state(self) -> None:
        """Create the state of every parameter that has none yet, as the first step would.

        Frozen parameters of dtypes that cannot be stepped get none.
        """
        self._init_state(self.parameters_by_name())

    def _init_state(self, wanted: Iterable[OwnParameter]) -> None:
        for name, param, group in wanted:
            if is_steppable(param):
                self.state_of(name, param, group)
        if self.offloader is not None:
            self.offloader.adopt()

    def state_devices(self, param: Tensor) -> StateDevices:
        """Return where the state of a parameter is kept."""
        here = local_tensor(param).device
        if self.offloader is None or here.type == "meta" or not self.offloader.takes(param):
            return StateDevices(here, here)
        return StateDevices(self.offloader.counter_device(param), torch.device("cpu"))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as PyTorch's optimizers do: tensors are references, not copies.

        Codes of 16 bits are views of their bytes, uint8 ``[..., 2]``, for collectives carry no
        int16: so the state of a sharded model can be gathered, broadcast and scattered.
        """
        self._settle()
        state_dict = super().state_dict()
        entries = state_dict["state"].items()
        return {**state_dict, "state": {key: carried_entry(entry) for key, entry in entries}}

    def state_snapshot(self) -> Snapshot | None:
        """Return what finds stored tensors as they are now, whatever steps follow.

        With state on disk, on a file system that can clone files, that takes no copy: the result,
        called with a tensor of ``state[p]``, returns a view of a frozen file. ``None`` otherwise.
        """
        return None if self.offloader is None else self.offloader.snapshot()

    def forget_steps(self) -> None:
        """Decide everything anew at the next step, as is done where state is loaded."""
        self._stepper.reset()
        if self.offloader is not None:
            self.offloader.forget()

    def forget_names(self) -> None:
        """Look up parameters' names anew, as is done where groups change."""
        self._by_name: dict[str, tuple[str, Tensor, dict[str, Any]]] = {}
        self._names: dict[Tensor, str] = {}
        self._indices: dict[int, int] = {}

    def _index_of(self, group: dict[str, Any]) -> int:
        """Return the index of a group, in one look-up however many groups there are."""
        index = self._indices.get(id(group), len(self.param_groups))
        if index >= len(self.param_groups) or self.param_groups[index] is not group:
            self._indices = {id(item): i for i, item in enumerate(self.param_groups)}
        return self._indices[id(group)]

    def _settle(self) -> None:
        """Wait until state that is offloaded may be read."""
        if self.offloader is not None:
            self.offloader.settle()

    def codecs(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Codec]:
        """Return the codec of each moment of a parameter of a group."""
        name = self._name_of(param) if "parameter_codecs" in group else ""
        return parameter_codecs(group, name, param.shape)

    def _name_of(self, param: Tensor) -> str:
        if param not in self._names:
            self._names = {item[1]: item[0] for item in self.parameters_by_name()}
        return self._names[param]

    def state_of(self, name: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a parameter's state, created if there is none yet."""
        state: dict[str, Tensor] = self.state[param]
        if state:
            return state
        if not self.elementwise and tuple(param.shape) not in self._shapes:
            raise flattened_error(name, type(self).__name__)
        with mode_of(param):
            state.update(self._new_state(name, param, group))
        return state

    def _new_state(
        self, name: str, param: Tensor, group: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        key = rounding.parameter_key(group["seed"], name)
        part, devices = part_of(param), self.state_devices(param)
        yield "step", torch.zeros((), dtype=torch.int64, device=devices.counters)
        yield "noise_key", torch.tensor(key, dtype=torch.int64, device="cpu")
        yield "nonfinite", torch.zeros((), dtype=torch.int64, device=devices.counters)
        for moment, codec in self.codecs(param, group).items():
            if part is not None:
                fields = state_of_part(part, codec, devices.stored)
            elif self.offloader is not None and self.offloader.takes(param) and has_values(param):
                fields = self.offloader.new_fields(codec, param.shape)
            else:
                fields = codec.init(param.shape, devices.stored)
            for field, tensor in fields.items():
                yield field_key(moment, field), tensor

    @property
    def named(self) -> bool:
        """Whether parameters were given with names, so that state is matched by name."""
        return all(group_names(group) is not None for group in self.param_groups)

    def parameters_by_name(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield every parameter with its name and group, group by group."""
        index = 0
        for group in self.param_groups:
            names = group_names(group)
            for position, param in enumerate(group["params"]):
                yield names[position] if names else f"param.{index}", param, group
                index += 1

    def parameter_names(self) -> list[str]:
        """Return the parameters' names, group by group; ``param.<i>`` where none were given."""
        return [name for name, _, _ in self.parameters_by_name()]

    def parameter_state(self, name: str) -> ParameterState:
        """Return one parameter's state; its tensors are references, not copies.

        Raises:
            KeyError: no parameter has that name.
        """
        if name not in self._by_name:
            self._by_name = {item[0]: item for item in self.parameters_by_name()}
        return self._state_of(*self._by_name[name])

    def parameter_states(self) -> list[ParameterState]:
        """Return every parameter's state, group by group; tensors are references."""
        return [self._state_of(*item) for item in self.parameters_by_name()]

    def _state_of(self, name: str, param: Tensor, group: dict[str, Any]) -> ParameterState:
        head = ParameterState(
            name=name,
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            group=self._index_of(group),
        )
        state = self.state.get(param)
        if not state:
            return head
        if not has_values(state["step"]):
            raise ConfigurationError(
                f"the state of {name!r} has no values: the parameter is on 'meta' or fake.",
                hint="optimizer.state[p] and state_dict() have its shapes and dtypes.",
            )
        self._settle()
        codecs = self.codecs(param, group)
        return replace(
            head,
            step=int(state["step"]),
            noise_key=int(state["noise_key"]),
            nonfinite=int(state["nonfinite"]),
            codecs=codecs,
            fields={
                field_key(moment, key): state[field_key(moment, key)]
                for moment, codec in codecs.items()
                for key in codec.layout(param.shape)
            },
        )

    def group_options(self) -> list[GroupOptions]:
        """Return each group's options, without its parameters; those of ours as JSON values."""
        return [
            {
                key: _plain(key, value)
                for key, value in group.items()
                if key not in ("params", "param_names")
            }
            for group in self.param_groups
        ]

    def incoming_state(self, states: Sequence[MatchedState]) -> Incoming | None:
        """Return a new block for states that are to be loaded; ``None`` where there is no such.

        Args:
            states: what `matched_states` returned.

        Raises:
            StorageError: the disk has no room for it beside the state of now.
            ConfigurationError: the host's memory has none.
        """
        return loading.incoming_state(self, states)

    def matched_states(
        self,
        groups: Sequence[GroupOptions],
        states: Sequence[ParameterState],
        *,
        algorithm: str,
        named: bool,
        strict: bool = True,
        where: str = "",
    ) -> list[MatchedState]:
        """Return which states `load_parameter_states` would load into which parameters.

        Raises:
            StateMismatchError: algorithm, groups or names do not fit.
        """
        source = StatesSource(self, groups, states, algorithm=algorithm, named=named, where=where)
        taken = planned(self, source, strict=strict).taken
        return [
            MatchedState(item.own[0], states[item.index], item.codecs)
            for item in taken
            if item.index is not None
        ]

    def load_parameter_states(
        self,
        groups: Sequence[GroupOptions],
        states: Iterable[ParameterState],
        *,
        incoming: Incoming | None = None,
        algorithm: str | None = None,
        named: bool | None = None,
        strict: bool = True,
    ) -> LoadReport:
        """Replace all state by ``states``, and options of groups by those of ``groups``.

        Parameters and options are matched as in `load_state_dict`. Names, shapes and codecs are
        checked before anything changes.

        Args:
            groups: options of the groups the states come from, as `group_options` returns them.
            states: one state per parameter; copied, so the source stays independent.
            incoming: of `incoming_state`, where states' tensors are in it already.
            algorithm: of the optimizer that the states come from; found from ``groups`` by default.
            named: whether states have parameters' own names; found from them by default.
            strict: as `load_state_dict` takes it.

        Raises:
            StateMismatchError: says which parameter, what it has and what was expected.
        """
        self.forget_steps()
        source = StatesSource(self, groups, list(states), algorithm=algorithm, named=named)
        return loading.load_source(self, source, strict=strict, incoming=incoming)

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], *, strict: bool = True
    ) -> LoadReport:
        """Load what `state_dict` returned; stored tensors keep their dtypes.

        Parameters are matched by name where both sides have names, whatever wrappers these have
        (``torch.compile``, DDP, FSDP), and by position otherwise, which needs groups of equal
        sizes. Names that were saved (``param_names``) are adopted, as AdamW does.

        A group adopts the options of the saved group that has its parameters and no others,
        codecs among them. If there is no such group, it keeps its own.

        State of another optimizer of this project, and that of ``torch.optim.AdamW``, is coded in
        this optimizer's codecs by rounding to nearest, which is logged. Of its options a group
        adopts ``lr``, ``betas``, ``eps``, ``weight_decay`` and ``maximize``.

        Args:
            state_dict: what ``state_dict()`` returned.
            strict: whether every parameter must have been saved, in groups of the same sizes, and
                all that was saved must find its parameter. If not, parameters that were not saved,
                or with another shape, start with fresh state.

        Returns:
            What found no counterpart.

        Raises:
            StateMismatchError: groups, names, shapes or fields do not fit; nothing was changed.
            ConversionError: it is AdamW's and cannot be represented; nothing was changed.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = pre_hook(self, state_dict)
            if result is not None:
                state_dict = result
        self.forget_steps()
        report = loading.load_torch_state_dict(self, state_dict, strict=strict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return report


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those of AdamW that have no effect here."""
    return {key: value for key, value in options.items() if key not in ADAMW_KEYWORDS}


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    if key in KNOWN_OPTIONS and isinstance(value, np.generic):
        return value.item()
    if key in KNOWN_OPTIONS and isinstance(value, tuple | list):
        return [_plain(key, item) for item in value]
    return value
