"""Steps that are described once and taken many times, all of them in one call of the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_double
from dataclasses import replace
from itertools import starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luma_core.rounding import step_keys
from luma_core.rules import ParameterStep, Rule
from luma_kernels.cpu.coding import is_plain
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.rules import RULES
from luma_kernels.cpu.step import describe_step, is_unusual_rate, unsupported_step
from luma_kernels.cpu.structs import SCALARS, Step


def plan_steps(rule: Rule) -> NativePlan | None:
    """Return an empty plan; ``None`` for rules that the library does not know."""
    return NativePlan(rule) if type(rule) in RULES else None


class PlannedStep(NamedTuple):
    """A parameter whose steps are planned.

    Attributes:
        item: its next step, which stands for all that follow: only its numbers, its noise, the
            gradient and its factor differ.
        state: its state, with ``step``, ``noise_key`` and ``nonfinite``.
        group: index of its group.
        coarse: whether a moment is stored by a coarse codec.
    """

    item: ParameterStep
    state: Mapping[str, Tensor]
    group: int
    coarse: bool


class NativePlan:
    """The next steps of several parameters, as the library reads them.

    It names tensors by address: whoever calls `launch` has made sure that the tensors given to
    `build` are still the ones to step, and that `follow_gradients` was called where only gradients
    lie elsewhere.

    Args:
        rule: of all parameters.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._scalars = RULES[type(rule)].scalars
        self._planned: list[PlannedStep] = []
        self._steps: Any = None

    def build(self, planned: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Take other parameters; return which of them it steps.

        Left are those that need memory beside their tensors, or copies of them.
        """
        self._planned, steps, taken = [], [], []
        for one in starmap(PlannedStep, planned):
            item = one.item
            step = None
            if _lies_still(item) and not unsupported_step(self._rule, item):
                described = describe_step(item, item.param, item.grad)
                step = None if described.room else described.step
            taken.append(step is not None)
            if step is not None:
                # Gradients are free between steps: only their parameters hold them.
                kept = replace(item, grad=item.grad.new_empty(0))
                self._planned.append(one._replace(item=kept))
                steps.append(step)
        self._steps = (Step * len(steps))(*steps)
        return taken

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        for step, one in zip(self._steps, self._planned, strict=True):
            grad = one.item.param.grad
            if grad is None or not is_plain(grad) or not grad.is_contiguous():
                return False
            step.grad = address(grad)
        return True

    def launch(self, groups: Sequence[Mapping[str, Any]], factors: Sequence[Tensor | None]) -> bool:
        """Take and count the steps; return ``False``, and change nothing, where it cannot.

        Args:
            groups: the optimizer's groups.
            factors: what the gradients of each group are multiplied by; ``None`` for 1.
        """
        planned = self._planned
        if any(is_unusual_rate(groups[one.group]["lr"]) for one in planned):
            return False
        torch._foreach_add_([one.state["step"] for one in planned], 1)
        counts = _integers(one.state["step"] for one in planned)
        noise_keys = _integers(one.state["noise_key"] for one in planned)
        scales = [1.0 if factor is None else float(factor) for factor in factors]
        known: dict[tuple[int, int, bool], Any] = {}
        for step, one, count, noise_key in zip(
            self._steps, planned, counts, noise_keys, strict=True
        ):
            key = one.group, count, one.coarse
            if key not in known:
                hyper = self._rule.hyper(groups[one.group], count, coarse=one.coarse)
                known[key] = (c_double * SCALARS)(*self._scalars(hyper))
            step.scalars = known[key]
            keys = step_keys(noise_key, count)
            step.k0, step.k1 = keys.k0 & 0xFFFFFFFF, keys.k1 & 0xFFFFFFFF
            step.grad_factor = scales[one.group]
        found = native_library().steps(self._steps, torch.get_num_threads())
        for one, bad in zip(planned, found, strict=True):
            if bad:
                one.state["nonfinite"].add_(bad)
        # Writing through pointers, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version([one.item.param for one in planned])
        return True


def _integers(scalars: Iterable[Tensor]) -> list[int]:
    found: list[int] = torch.stack(list(scalars)).tolist()
    return found


def _lies_still(item: ParameterStep) -> bool:
    """Return whether the step reads and writes the tensors themselves, not copies."""
    return item.param.is_contiguous() and item.grad.is_contiguous()
