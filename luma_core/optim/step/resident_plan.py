"""Steps of several parameters at once: which go to fused kernels, and which one by one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from luma_core.backends.base import JointStep, Plan
from luma_core.backends.native import NATIVE
from luma_core.backends.registry import step_parameter
from luma_core.backends.triton import TRITON
from luma_core.errors import BackendUnavailableError
from luma_core.optim.step.clipping import GradientClip, gradient_square_digits
from luma_core.optim.step.contracts import Steppable
from luma_core.optim.step.stepped_parameter import SteppedParameter
from luma_core.rules.base import Reduction, Rule, Stages
from luma_core.rules.collective import reduce_parts, run_together
from luma_core.rules.norms import total

_LOGGER = logging.getLogger(__name__)


_GATHERED_ELEMENTS = 1 << 26
"""Elements of a process's parts that are gathered at a time, unless one parameter has more."""


@cache
def _log_once(message: str) -> None:
    _LOGGER.warning(message)


class ResidentPlan:
    """Steps parameters together whose state is on their device, by fused kernels where it can.

    Each update rule has kernels and tables of its own.

    Args:
        optimizer: gives backend and groups.
    """

    def __init__(self, optimizer: Steppable) -> None:
        self._optimizer = optimizer
        self._known: dict[tuple[torch.device, Rule], JointStep] = {}
        self._fused: dict[tuple[torch.device, Rule], JointStep] = {}
        self._planned: dict[Plan, list[SteppedParameter]] = {}
        self._single: list[SteppedParameter] = []
        self._without_values: list[SteppedParameter] = []
        self.keeps = False
        """Whether what `build` found holds for the next step, if no tensor changes."""

    @property
    def all_fused(self) -> bool:
        """Whether every parameter goes to a fused step."""
        others = any(self._planned.values()) or self._single or self._without_values
        return bool(self._fused) and not others

    def clear(self) -> None:
        """Forget the parameters."""
        self._fused, self._single, self._without_values = {}, [], []
        self._planned = {}

    def build(self, parameters: Sequence[SteppedParameter]) -> None:
        """Take other parameters, and decide where each goes."""
        self._without_values = [item for item in parameters if not item.has_values]
        parameters = [item for item in parameters if item.has_values]
        self._single, self._planned, self._fused = [], {}, {}
        for rule in dict.fromkeys(item.rule for item in parameters):
            mine = [item for item in parameters if item.rule is rule]
            left = self._build_plan(rule, mine)
            self._single += self._build_fused(rule, left)
        self.keeps = bool(any(self._planned.values()) or self._fused) and not self._without_values

    def _build_plan(
        self, rule: Rule, parameters: Sequence[SteppedParameter]
    ) -> list[SteppedParameter]:
        """Plan a rule's steps on the CPU that the native library takes; return all others."""
        plan = NATIVE.plan(self._optimizer.backend, rule)
        if plan is None:
            return list(parameters)
        able = [item for item in parameters if item.param.is_cpu and item.independent]
        taken = plan.build([item.planned_step for item in able])
        self._planned[plan] = [item for item, ok in zip(able, taken, strict=True) if ok]
        planned = set(map(id, self._planned[plan]))
        return [item for item in parameters if id(item) not in planned]

    def _build_fused(
        self, rule: Rule, parameters: Sequence[SteppedParameter]
    ) -> list[SteppedParameter]:
        """Build the tables of a rule's fused steps on CUDA devices; return all others."""
        optimizer = self._optimizer
        fused_class = TRITON.joint_step(optimizer.backend, rule)
        if fused_class is None:
            return list(parameters)
        devices = {item.param.device for item in parameters if item.param.is_cuda}
        others = [item for item in parameters if not item.param.is_cuda]
        for device in sorted(devices, key=str):
            here = [item for item in parameters if item.param.device == device]
            key = device, rule
            if key not in self._known:
                self._known[key] = fused_class(device, rule)
            fused = self._known[key]
            able = [item for item in here if item.fusible]
            taken = fused.build(
                [
                    (
                        *(item.param, item.state, item.codecs, item.group_index, item.first_index),
                        item.shared_part,
                    )
                    for item in able
                ],
                optimizer.param_groups,
            )
            self._fused[key] = fused
            left = [item for item in here if not item.fusible]
            left += [item for item, ok in zip(able, taken, strict=True) if not ok]
            self._refuse_or_log(left)
            others += left
        return others

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        if not all(plan.follow_gradients() for plan in self._planned):
            return False
        return all(fused.follow_gradients() for fused in self._fused.values())

    def square_sums(self) -> list[Tensor]:
        """Return sums of squares of the gradients, float64 0-d, which add up to that of all."""
        sums = [fused.square_sum() for fused in self._fused.values()]
        parts = [
            (Reduction(gradient_square_digits(stepped.param.grad), "sum"), stepped.part)
            for stepped in self._alone
            if stepped.param.grad is not None
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
        self._step_single([*self._step_planned(clip), *self._single], clip)
        for stepped in self._without_values:
            stepped.state["step"] += 1

    def _refuse_or_log(self, left: list[SteppedParameter]) -> None:
        """Fail where the kernels were asked for by name and cannot take a parameter."""
        for item in left:
            reason = (
                "it is not contiguous"
                if not item.param.is_contiguous()
                else "its codecs or block size have no kernel"
                if item.fusible
                else "the kernels do not serve the way in which it is sharded"
            )
            if self._optimizer.backend == "triton":
                raise BackendUnavailableError(
                    f"backend='triton' cannot step {item.name!r}: {reason}.",
                    hint="Use backend='auto', which takes PyTorch's slower path for it.",
                )
            _log_once(f"LUMA steps some parameters in PyTorch, slowly: {item.name!r}: {reason}.")

    @property
    def _alone(self) -> list[SteppedParameter]:
        """What no fused step takes."""
        return [*chain.from_iterable(self._planned.values()), *self._single]

    def _step_planned(self, clip: GradientClip | None) -> list[SteppedParameter]:
        """Step what is planned, in one call for each rule; return what must be stepped alone."""
        groups, left = self._optimizer.param_groups, []
        for plan, planned in self._planned.items():
            if not planned:
                continue
            device = planned[0].param.device
            factors = [
                None if clip is None else clip.factor(group["max_grad_norm"], device)
                for group in groups
            ]
            if not plan.launch(groups, factors):
                left += planned
        return left

    def _step_single(self, single: Sequence[SteppedParameter], clip: GradientClip | None) -> None:
        """Step parameters one by one, but for what they need of other processes."""
        optimizer, together = self._optimizer, []
        for stepped in single:
            stepped.state["step"] += 1
            step = int(stepped.state["step"])
            factor = None
            if clip is not None:
                factor = clip.factor(stepped.group["max_grad_norm"], stepped.param.device)
            item = stepped.parameter_step(step, factor)
            if stepped.independent and not stepped.rule.gathers:
                bad = step_parameter(optimizer.backend, stepped.rule, item)
                stepped.state["nonfinite"].add_(bad)
            else:
                together.append((stepped, stepped.rule.stages(item)))
        for batch in _batches(together):
            results = run_together([(stages, stepped.part) for stepped, stages in batch])
            for (stepped, _), bad in zip(batch, results, strict=True):
                stepped.state["nonfinite"].add_(bad)


def _batches(
    steps: Sequence[tuple[SteppedParameter, Stages]],
) -> Iterator[list[tuple[SteppedParameter, Stages]]]:
    """Yield steps that are taken together, alike on all processes.

    Those that gather keep tensors of their parameters' sizes meanwhile, which bounds their number.
    """
    found: list[tuple[SteppedParameter, Stages]] = []
    room = _GATHERED_ELEMENTS
    for stepped, stages in steps:
        parts = 1 if stepped.part is None else math.prod(stepped.part.cut.values())
        size = math.prod(stepped.whole_shape) // parts if stepped.rule.gathers else 0
        if found and size > room:
            yield found
            found, room = [], _GATHERED_ELEMENTS
        found.append((stepped, stages))
        room -= size
    if found:
        yield found
