"""Steps of several parameters at once: which go to fused kernels, and which one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luma_core.errors import BackendUnavailableError
from luma_core.optim.step.backend import step_parameter
from luma_core.optim.step.clipping import GradientClip, gradient_square_digits
from luma_core.optim.step.collective import reduce_parts, run_together
from luma_core.optim.step.gpu import fused_step_class
from luma_core.optim.step.work import Steppable, Work
from luma_core.rules.base import Reduction
from luma_core.rules.norms import total

if TYPE_CHECKING:
    from luma_kernels.triton.runtime.launcher import FusedStep


_LOGGER = logging.getLogger(__name__)


@cache
def _log_once(message: str) -> None:
    _LOGGER.warning(message)


class Batch:
    """Parameters that take a step together, with their state where the step can reach it.

    Args:
        optimizer: gives rule, backend and groups.
    """

    def __init__(self, optimizer: Steppable) -> None:
        self._optimizer = optimizer
        self._by_device: dict[torch.device, FusedStep] = {}
        self._fused: dict[torch.device, FusedStep] = {}
        self._single: list[Work] = []
        self._without_values: list[Work] = []
        self.keeps = False
        """Whether what `build` found holds for the next step, if no tensor changes."""

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        return bool(self._fused) and not self._single and not self._without_values

    def clear(self) -> None:
        """Forget the parameters."""
        self._fused, self._single, self._without_values = {}, [], []

    def build(self, work: Sequence[Work]) -> None:
        """Take other parameters, and decide where each goes."""
        optimizer = self._optimizer
        fused_class = fused_step_class(optimizer.backend, optimizer.rule)
        self._fused, self.keeps = {}, False
        self._without_values = [item for item in work if not item.has_values]
        work = [item for item in work if item.has_values]
        if fused_class is None:
            self._single = list(work)
            return
        devices = {item.param.device for item in work if item.param.is_cuda}
        self._single = [item for item in work if not item.param.is_cuda]
        self.keeps = bool(devices) and not self._without_values
        for device in sorted(devices, key=str):
            here = [item for item in work if item.param.device == device]
            if device not in self._by_device:
                self._by_device[device] = fused_class(device, optimizer.rule)
            fused = self._by_device[device]
            able = [item for item in here if item.fusible(optimizer.rule)]
            taken = fused.build(
                [
                    (
                        *(item.param, item.state, item.codecs, item.group_index, item.first_index),
                        item.shared_part(optimizer.rule),
                    )
                    for item in able
                ],
                optimizer.param_groups,
            )
            self._fused[device] = fused
            left = [item for item in here if not item.fusible(optimizer.rule)]
            left += [item for item, ok in zip(able, taken, strict=True) if not ok]
            self._refuse_or_log(left)
            self._single += left

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        return all(fused.follow_gradients() for fused in self._fused.values())

    def square_sums(self) -> list[Tensor]:
        """Return sums of squares of the gradients, float64 0-d, which add up to that of all."""
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
        return sums

    def launch(
        self, *, grad_scale: Tensor | None, found_inf: Tensor | None, clip: GradientClip | None
    ) -> None:
        """Take the step; of parameters without values, count it.

        Args:
            grad_scale: what gradients were multiplied by, given by a GradScaler.
            found_inf: nonzero where the GradScaler asks to skip the step.
            clip: bounds the gradients' norm, if any group asks for that.
        """
        groups = self._optimizer.param_groups
        for fused in self._fused.values():
            norm = None if clip is None else clip.norm
            fused.launch(groups, grad_scale=grad_scale, found_inf=found_inf, grad_norm=norm)
        self._step_single(clip)
        for work in self._without_values:
            work.state["step"] += 1

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

    def _step_single(self, clip: GradientClip | None) -> None:
        """Step what no fused step takes."""
        optimizer, together = self._optimizer, []
        for work in self._single:
            work.state["step"] += 1
            step = int(work.state["step"])
            factor = None
            if clip is not None:
                factor = clip.factor(work.group["max_grad_norm"], work.param.device)
            hyper = optimizer.rule.hyper(work.group, step, coarse=work.coarse)
            item = work.parameter_step(hyper, step, factor)
            if work.independent(optimizer.rule):
                bad = step_parameter(optimizer.backend, optimizer.rule, item)
                work.state["nonfinite"].add_(bad)
            else:
                together.append((work, optimizer.rule.stages(item)))
        results = run_together([(stages, work.part) for work, stages in together])
        for (work, _), bad in zip(together, results, strict=True):
            work.state["nonfinite"].add_(bad)
