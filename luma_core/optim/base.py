"""The base of all optimizers: owns state, parameter groups, dispatch and loading."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from luma_core.backends.registry import check_backend
from luma_core.codecs import moment_codecs
from luma_core.errors import ConfigurationError
from luma_core.optim.common_options import CommonKeywords, CommonOptions
from luma_core.optim.offload import (
    LoadArena,
    Offloader,
    OffloadOptions,
    Snapshot,
    choose_offload,
)
from luma_core.optim.options import (
    ADAMW_KEYWORDS,
    check_codecs,
    check_not_flattened,
    check_options,
    check_parameter,
    check_parameter_codecs,
    group_of,
    is_steppable,
    normalize_options,
)
from luma_core.optim.parameter_states import ParameterStates
from luma_core.optim.presets import DEFAULT_BLOCK_SIZE, moment_kinds, preset_codecs
from luma_core.optim.state_io import loading
from luma_core.optim.state_io.adoption import register
from luma_core.optim.state_io.entries import carry_entry
from luma_core.optim.state_io.plan import plan_loading
from luma_core.optim.state_io.saved_options import ALGORITHM_KEY
from luma_core.optim.state_io.sources import OwnParameter
from luma_core.optim.state_io.states_source import StatesSource
from luma_core.optim.step.dry_step import is_dry
from luma_core.optim.step.stepping import Stepper
from luma_core.state import (
    GroupOptions,
    LoadReport,
    MatchedState,
    ParameterState,
)


class CompressedOptimizer(ParameterStates):
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

    algorithm: str
    codec_options: ClassVar[tuple[str, ...]] = ("codec", "block_size")
    """Options of a new group that choose its codecs, and are not kept beside those."""

    def __init__(
        self,
        params: ParamsT,
        options: Mapping[str, Any],
        *,
        storage: Mapping[str, Any] | None = None,
        **common: Unpack[CommonKeywords],
    ) -> None:
        """Build it over parameters.

        Args:
            params: parameters, parameter groups, or ``model.named_parameters()``.
            options: those of groups that are the rule's own.
            storage: the values of ``codec_options``, from which `group_codecs` finds codecs.
            common: the fields of `CommonOptions` that were given.
        """
        given = CommonOptions.given_to(type(self), common)
        offload = given.of_offloading()
        self.backend = check_backend(given.backend)
        self._storage = dict(storage or {})
        self._set_offload(offload)
        self.forget_names()
        self._shapes = set()
        shared = {key: value for key, value in given.of_groups().items() if key not in options}
        defaults = normalize_options({**options, **shared, "seed": given.seed})
        check_options(defaults, self.rule.torch_options)
        super().__init__(params, self._kept(defaults))
        register(self)
        if offload is not None and offload.mode == "auto":
            self._set_offload(choose_offload(self, offload))

    def _set_offload(self, options: OffloadOptions | None) -> None:
        self._offload = options
        fixed = options is not None and options.mode != "auto"
        self.offloader = Offloader(self, options) if fixed and options is not None else None
        # Not this itself: whoever drops an optimizer has its memory back at once.
        self._stepper = Stepper(weakref.proxy(self))

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        own = {"backend": self.backend, "_storage": self._storage, "_offload": self._offload}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_offload(self._offload)
        self.forget_names()
        register(self)
        self._shapes = {tuple(param.shape) for _, param, _ in self.parameters_by_name()}

    def group_codecs(self, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the codec configuration of each moment for a new group's options.

        Raises:
            ConfigurationError: ``codec`` or ``block_size`` cannot work.
        """
        chosen, rule = {**self._storage, **group}, self.rule.for_group({**self.defaults, **group})
        asked = "block_size" in group or (
            "codec" not in group and chosen["block_size"] != DEFAULT_BLOCK_SIZE
        )
        return preset_codecs(
            chosen["codec"],
            moment_kinds(rule),
            block_size=chosen["block_size"],
            given_block_size=asked,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options default to the optimizer's.

        What chooses the codecs of new optimizers (``codec_options``) may stand in the group too;
        ``codecs`` gives them outright.

        Raises:
            ConfigurationError: an option cannot work; the optimizer is unchanged.
            UnsupportedParameterError: a parameter that needs gradients is of a dtype or layout that
                is not supported, or ``param_group`` is no group.
        """
        group = normalize_options(group_of(param_group))
        options = {**self.defaults, **group}
        check_options(options, self.rule.torch_options)
        codecs = options.get("codecs") or self.group_codecs(options)
        if options.get("codec") is not None and codecs != self.group_codecs(options):
            raise ConfigurationError(
                f"codec={options['codec']!r} of a group contradicts its codecs={codecs!r}.",
                hint="Give one of them.",
            )
        rule = self.rule.for_group(options)
        check_codecs(codecs, rule.moments)
        check_parameter_codecs(options.get("parameter_codecs", {}), rule.moment_names)
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
        super().add_param_group(self._kept(group))
        self.forget_names()
        self.forget_steps()

    def _kept(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options without those of AdamW that have no effect here."""
        dropped = ADAMW_KEYWORDS.keys() - self.rule.torch_options
        return {key: value for key, value in options.items() if key not in dropped}

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

    def state_dict(self) -> dict[str, Any]:
        """Return the state as PyTorch's optimizers do: tensors are references, not copies.

        Each group also says the optimizer's ``algorithm``, by which state of another one is known.
        Codes of 16 bits are views of their bytes, uint8 ``[..., 2]``, for collectives carry no
        int16: so the state of a sharded model can be gathered, broadcast and scattered.
        """
        self._settle()
        state_dict = super().state_dict()
        entries = state_dict["state"].items()
        return {
            **state_dict,
            "state": {key: carry_entry(entry) for key, entry in entries},
            "param_groups": [
                {**group, ALGORITHM_KEY: self.algorithm} for group in state_dict["param_groups"]
            ],
        }

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

    def incoming_state(self, states: Sequence[MatchedState]) -> LoadArena | None:
        """Return memory for states that are to be loaded; ``None`` where loading needs none.

        Args:
            states: what `matched_states` returned.

        Raises:
            StorageError: the disk has no room for it beside the present state.
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
        taken = plan_loading(self, source, strict=strict).taken
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
        incoming: LoadArena | None = None,
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
