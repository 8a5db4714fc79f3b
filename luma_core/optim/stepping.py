"""Takes an optimizer's step: which backend each parameter goes to, and the order of checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import Codec
from luma_core.errors import BackendUnavailableError, StateMismatchError
from luma_core.optim.backend import check_codecs_of_backend, check_device, step_parameter
from luma_core.optim.clipping import GradientClip, gradient_square_sum
from luma_core.optim.gpu import fused_step_class
from luma_core.optim.nonfinite import raise_if_nonfinite
from luma_core.optim.options import check_gradient
from luma_core.optim.rules import ParameterStep, StoredMoment
from luma_core.optim.watch import Change, Watch
from luma_core.state import field_key

if TYPE_CHECKING:
    from luma_core.optim.base import CompressedOptimizer
    from luma_kernels.triton.launcher import FusedStep


_LOGGER = logging.getLogger(__name__)


@cache
def _log_once(message: str) -> None:
    _LOGGER.warning(message)


class Work(NamedTuple):
    """One parameter that takes the step."""

    name: str
    param: Tensor
    group: dict[str, Any]
    group_index: int
    state: dict[str, Tensor]
    codecs: Mapping[str, Codec]


class Stepper:
    """Steps one optimizer, and remembers what need not be decided again at every step.

    On a GPU, parameters go to a fused step whose device tables stay valid while `Watch` sees no
    change; all others are stepped one by one.
    """

    def __init__(self, optimizer: CompressedOptimizer) -> None:
        self._optimizer = optimizer
        self._by_device: dict[torch.device, FusedStep] = {}
        self._fused: dict[torch.device, FusedStep] = {}
        self._single: list[Work] = []
        self._watch: Watch | None = None

    def reset(self) -> None:
        """Forget everything, since state or parameters were replaced."""
        self._watch = None

    @property
    def all_fused(self) -> bool:
        """Whether every parameter with a gradient goes to the fused step."""
        self._prepare()
        return bool(self._fused) and not self._single

    def step(self, *, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Take the step; nothing changes if any gradient is refused.

        Args:
            grad_scale: what gradients were multiplied by, given by a GradScaler.
            found_inf: nonzero where the GradScaler asks to skip the step.
        """
        groups = self._optimizer.param_groups
        if any(group["nonfinite"] == "raise" for group in groups):
            raise_if_nonfinite(
                [
                    (name, param.grad)
                    for name, param, group in self._optimizer.parameters_by_name()
                    if group["nonfinite"] == "raise" and param.grad is not None
                ]
            )
        self._prepare()
        clip = None
        if any(group.get("max_grad_norm") is not None for group in groups):
            clip = self._clip()
        for fused in self._fused.values():
            norm = None if clip is None else clip.norm
            fused.launch(groups, grad_scale=grad_scale, found_inf=found_inf, grad_norm=norm)
        for work in self._single:
            self._step_one(work, clip)

    def _clip(self) -> GradientClip:
        """Return the bound on all gradients of the step."""
        grads = [item.param.grad for item in self._single if item.param.grad is not None]
        sums = [fused.square_sum() for fused in self._fused.values()]
        return GradientClip([*sums, *map(gradient_square_sum, grads)])

    def _prepare(self) -> None:
        """Decide where each parameter goes, unless that was decided for the same tensors."""
        optimizer = self._optimizer
        fused_class = fused_step_class(optimizer.backend, optimizer.rule)
        if fused_class is not None and self._tables_hold():
            return
        work = self._collect()
        self._fused, self._single = {}, work
        if fused_class is None:
            return
        devices = {item.param.device for item in work if item.param.is_cuda}
        self._single = [item for item in work if not item.param.is_cuda]
        for device in sorted(devices, key=str):
            here = [item for item in work if item.param.device == device]
            if device not in self._by_device:
                self._by_device[device] = fused_class(device, optimizer.rule)
            fused = self._by_device[device]
            taken = fused.build(
                [(item.param, item.state, item.codecs, item.group_index) for item in here],
                optimizer.param_groups,
            )
            self._fused[device] = fused
            left = [item for item, ok in zip(here, taken, strict=True) if not ok]
            self._refuse_or_log(left)
            self._single += left
        if devices:
            self._watch = Watch(optimizer.param_groups, optimizer.state)

    def _tables_hold(self) -> bool:
        """Return whether all is decided already, after bringing gradients' addresses up to date."""
        watch, self._watch = self._watch, None
        if watch is None:
            return False
        change = watch.change(self._optimizer.param_groups, self._optimizer.state)
        moved = change is Change.GRADIENTS
        if moved and all(fused.follow_gradients() for fused in self._fused.values()):
            change = Change.NOTHING
        if change is not Change.NOTHING:
            return False
        self._watch = watch
        return True

    def _refuse_or_log(self, left: list[Work]) -> None:
        """Fail where the kernels were asked for by name and cannot take a parameter."""
        for item in left:
            reason = (
                "its codecs or block size have no kernel"
                if item.param.is_contiguous()
                else "it is not contiguous"
            )
            if self._optimizer.backend == "triton":
                raise BackendUnavailableError(
                    f"backend='triton' cannot step {item.name!r}: {reason}.",
                    hint="Use backend='auto', which takes PyTorch's slower path for it.",
                )
            _log_once(f"LUMA steps some parameters in PyTorch, slowly: {item.name!r}: {reason}.")

    def _collect(self) -> list[Work]:
        optimizer = self._optimizer
        found = [item for item in optimizer.parameters_by_name() if item[1].grad is not None]
        for name, param, _ in found:
            assert param.grad is not None
            check_gradient(name, param.grad)
            check_device(optimizer.backend, name, param)
        indices = {id(group): index for index, group in enumerate(optimizer.param_groups)}
        work = []
        for name, param, group in found:
            codecs = optimizer.codecs(param, group)
            check_codecs_of_backend(optimizer.backend, optimizer.rule, name, codecs)
            state = optimizer.state_of(name, param, group)
            _check_shapes(name, param, state, codecs)
            work.append(Work(name, param, group, indices[id(group)], state, codecs))
        return work

    def _step_one(self, work: Work, clip: GradientClip | None) -> None:
        param, state = work.param, work.state
        state["step"] += 1
        step = int(state["step"])
        assert param.grad is not None
        bad = step_parameter(
            self._optimizer.backend,
            self._optimizer.rule,
            ParameterStep(
                param=param,
                grad=param.grad,
                moments={
                    moment: StoredMoment(
                        codec,
                        {key: state[field_key(moment, key)] for key in codec.layout(param.shape)},
                    )
                    for moment, codec in work.codecs.items()
                },
                hyper=self._optimizer.rule.hyper(work.group, step),
                keys=rounding.step_keys(int(state["noise_key"]), step),
                skip_nonfinite=work.group["nonfinite"] != "propagate",
                stochastic_rounding=work.group["stochastic_rounding"],
                grad_factor=clip.factor(work.group["max_grad_norm"], param.device)
                if clip is not None
                else None,
            ),
        )
        state["nonfinite"] += bad


def _check_shapes(
    name: str, param: Tensor, state: Mapping[str, Tensor], codecs: Mapping[str, Codec]
) -> None:
    for moment, codec in codecs.items():
        for key, spec in codec.layout(param.shape).items():
            found = tuple(state[field_key(moment, key)].shape)
            if found != spec.shape:
                raise StateMismatchError(
                    f"{name!r}: its state {field_key(moment, key)!r} has shape {list(found)}, but "
                    f"a parameter of shape {list(param.shape)} needs {list(spec.shape)}.",
                    hint="The parameter changed its shape: drop its state with "
                    "optimizer.state.pop(param), or build a new optimizer.",
                )
