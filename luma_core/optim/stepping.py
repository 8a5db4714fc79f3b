"""Takes an optimizer's step: which backend each parameter goes to, and the order of checks."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luma_core.errors import BackendUnavailableError
from luma_core.optim.backend import step_parameter
from luma_core.optim.clipping import GradientClip, gradient_square_digits
from luma_core.optim.collective import reduce_parts, run_together
from luma_core.optim.gpu import fused_step_class
from luma_core.optim.nonfinite import raise_if_nonfinite
from luma_core.optim.rules.base import Reduction
from luma_core.optim.rules.norms import total
from luma_core.optim.watch import Change, Watch
from luma_core.optim.work import LocalTensors, Steppable, Work, collect
from luma_core.sharding import is_sharded, part_of

if TYPE_CHECKING:
    from luma_kernels.triton.launcher import FusedStep


_LOGGER = logging.getLogger(__name__)


@cache
def _log_once(message: str) -> None:
    _LOGGER.warning(message)


def _whole(scalar: Tensor | None) -> Tensor | None:
    """Return a number of all processes as a plain tensor."""
    return scalar.full_tensor() if is_sharded(scalar) else scalar


class Stepper:
    """Steps one optimizer, and remembers what need not be decided again at every step.

    On a GPU, parameters go to a fused step whose device tables stay valid while `Watch` sees no
    change; all others are stepped one by one.
    """

    def __init__(self, optimizer: Steppable) -> None:
        self._optimizer = optimizer
        self._by_device: dict[torch.device, FusedStep] = {}
        self._fused: dict[torch.device, FusedStep] = {}
        self._single: list[Work] = []
        self._tensors = LocalTensors()
        self._watch: Watch | None = None

    def reset(self) -> None:
        """Forget everything, since state or parameters were replaced."""
        self._watch = None
        self._tensors.clear()

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
        grad_scale, found_inf = _whole(grad_scale), _whole(found_inf)
        groups = self._optimizer.param_groups
        if any(group["nonfinite"] == "raise" for group in groups):
            raise_if_nonfinite(
                [
                    (name, param.grad, part_of(param))
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
        self._step_all(clip)
        self._tensors.release()

    def _clip(self) -> GradientClip:
        """Return the bound on all gradients of the step."""
        sums = [fused.square_sum() for fused in self._fused.values()]
        parts = [
            (Reduction(gradient_square_digits(work.param.grad), "sum"), work.part)
            for work in self._single
            if work.param.grad is not None
        ]
        device = parts[0][0].values.device if parts else None
        digits = [part.to(device) for part in reduce_parts(parts)]
        if digits:
            sums.append(total(torch.stack(digits).sum(dim=0)))
        return GradientClip(sums)

    def _prepare(self) -> None:
        """Decide where each parameter goes, unless that was decided for the same tensors."""
        optimizer = self._optimizer
        fused_class = fused_step_class(optimizer.backend, optimizer.rule)
        self._tensors.follow()
        if fused_class is not None and self._tables_hold():
            return
        work = collect(optimizer, self._tensors)
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
            able = [item for item in here if item.fusible(optimizer.rule)]
            taken = fused.build(
                [
                    (item.param, item.state, item.codecs, item.group_index, item.first_index)
                    for item in able
                ],
                optimizer.param_groups,
            )
            self._fused[device] = fused
            left = [item for item in here if not item.fusible(optimizer.rule)]
            left += [item for item, ok in zip(able, taken, strict=True) if not ok]
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
                "it is not contiguous"
                if not item.param.is_contiguous()
                else "its codecs or block size have no kernel"
                if item.fusible(self._optimizer.rule)
                else "the kernels do not serve the way in which it is sharded"
            )
            if self._optimizer.backend == "triton":
                raise BackendUnavailableError(
                    f"backend='triton' cannot step {item.name!r}: {reason}.",
                    hint="Use backend='auto', which takes PyTorch's slower path for it.",
                )
            _log_once(f"LUMA steps some parameters in PyTorch, slowly: {item.name!r}: {reason}.")

    def _step_all(self, clip: GradientClip | None) -> None:
        """Step what no fused step takes."""
        optimizer, together = self._optimizer, []
        for work in self._single:
            work.state["step"] += 1
            step = int(work.state["step"])
            factor = None
            if clip is not None:
                factor = clip.factor(work.group["max_grad_norm"], work.param.device)
            item = work.parameter_step(optimizer.rule.hyper(work.group, step), step, factor)
            if work.independent(optimizer.rule):
                bad = step_parameter(optimizer.backend, optimizer.rule, item)
                work.state["nonfinite"].add_(bad)
            else:
                together.append((work, optimizer.rule.stages(item)))
        results = run_together([(stages, work.part) for work, stages in together])
        for (work, _), bad in zip(together, results, strict=True):
            work.state["nonfinite"].add_(bad)
