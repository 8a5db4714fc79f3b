"""Launches the fused step of all tensors of an optimizer on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luma_core.codecs import BlockGrid, Codec
from luma_core.rules import Rule
from luma_core.sharding import Part
from luma_kernels.triton.fused.clip import FusedClip
from luma_kernels.triton.fused.registry import KERNELS
from luma_kernels.triton.runtime.exchange import Call, adding, clearing
from luma_kernels.triton.runtime.launch import KernelLaunch
from luma_kernels.triton.runtime.plan import (
    TENSORS_PER_PROGRAM,
    Bucket,
    FusedTensor,
    Plan,
    is_capturing,
    lr_pointer,
)
from luma_kernels.triton.schedules.one_pass_launch import Pass

Entry = tuple[KernelLaunch | Call, Callable[[], tuple[Any, ...]]]
"""One launch of a step, or what takes its place, and what returns its arguments."""


class Item(NamedTuple):
    """A parameter, its state and codecs, its group's index, and its first element's index.

    The last is above 0 of a part of a parameter. Such a part must not lie on both sides of a
    multiple of 2**32. ``part`` is what it is of one whose other parts the step needs; all processes
    must have such parameters in the same order.
    """

    param: Tensor
    state: Mapping[str, Tensor]
    codecs: Mapping[str, Codec]
    group: int
    first_index: int = 0
    part: Part | None = None


class FusedStep:
    """The fused step of one optimizer on one device.

    Its tables name tensors by address: whoever calls `launch` has made sure that the tensors
    given to `build` are still the ones to step, and that `follow_gradients` was called where only
    gradients lie elsewhere.
    """

    def __init__(self, device: torch.device, rule: Rule) -> None:
        self.device = device
        self._rule = KERNELS[type(rule)]
        self._plan: Plan | None = None
        self._option_rows: list[list[float]] = []
        self._pointers: list[list[int]] = []
        self._clip = FusedClip()
        self._captured: list[Any] = []
        self._prepare: dict[bool, KernelLaunch] = {}
        self._passes: dict[tuple[Bucket, bool], list[Pass]] = {}
        self._sequence: dict[bool, list[Entry]] = {}
        self._repeated: list[Callable[[], Any]] = []

    @staticmethod
    def supports(rule: Rule) -> bool:
        """Return whether there are kernels of a rule."""
        return type(rule) in KERNELS

    def build(
        self, items: Sequence[tuple[Any, ...]], groups: Sequence[Mapping[str, Any]]
    ) -> list[bool]:
        """Build the tables over ``items``, fields of `Item`; return which the kernels take."""
        tensors = []
        taken = []
        for place, item in enumerate(items):
            param, state, codecs, group, first_index, part = Item(*item)
            assert param.grad is not None
            bucket = self._rule.bucket(param, param.grad, codecs, groups[group], part)
            taken.append(bucket is not None)
            if bucket is not None:
                grid = BlockGrid.of(param.shape, codecs["exp_avg"].block_size)
                others = () if part is None else tuple(part.groups)
                tensors.append(
                    FusedTensor(param, state, group, grid, bucket, first_index, others, place)
                )
        with self._current():
            self._plan = Plan(tensors, self.device, self._rule.scratch)
        self._option_rows = []
        self._sequence = {}
        self._repeated = []
        return taken

    def follow_gradients(self) -> bool:
        """Enter the gradients' new addresses; return ``False`` where that takes a new `build`."""
        if self._plan is None:
            return False
        self._repeated = []
        with self._current():
            return self._plan.follow_gradients()

    def square_sum(self) -> Tensor:
        """Return the sum of the finite squares of all gradients in the tables, float64 0-d."""
        if self._plan is None:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        with self._current():
            return self._clip.square_sum(self._plan)

    def launch(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        grad_norm: Tensor | None = None,
    ) -> None:
        """Take the step of every tensor in the tables, on their device's current stream.

        Args:
            groups: the optimizer's groups.
            grad_scale: what gradients were multiplied by, given by a GradScaler.
            found_inf: nonzero where the GradScaler asks to skip the step.
            grad_norm: float64 0-d: the norm of all gradients, as they are, which the groups'
                ``max_grad_norm`` bounds; ``None`` where no group has it.
        """
        plan = self._plan
        if plan is None or not plan.tensors:
            return
        with self._current():
            scale = self._here(grad_scale)
            if grad_norm is not None:
                self._clip.update(plan, groups, grad_norm.to(self.device), scale)
            self._launch(plan, groups, scale, self._here(found_inf))
        # Writing through pointers, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version(plan.params)

    def _current(self) -> AbstractContextManager[Any]:
        if self.device.type != "cuda" or torch.cuda.current_device() == self.device.index:
            return nullcontext()
        return torch.cuda.device(self.device)

    def _here(self, scalar: Tensor | None) -> Tensor | None:
        if scalar is None:
            return None
        return scalar.to(self.device, torch.float32, non_blocking=True)

    def _launch(
        self,
        plan: Plan,
        groups: Sequence[Mapping[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        self._upload_options(plan, groups)
        if is_capturing(self.device):
            # The graph may be replayed as long as the optimizer lives, and reads these.
            tables = plan.table, self._options, self._pointer_table
            self._captured.append((plan, *tables, self._clip.factors, self._clip.bounds))
        if found_inf is None and self._repeated:
            for repeat in self._repeated:
                repeat()
            return
        launches = self._launches(plan, grad_scale, found_inf)
        for kernel, arguments in launches:
            kernel(*arguments)
        if found_inf is None:
            repeated = [kernel.repeated(*arguments) for kernel, arguments in launches]
            known = [repeat for repeat in repeated if repeat is not None]
            self._repeated = known if len(known) == len(repeated) else []

    def _launches(
        self, plan: Plan, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> list[tuple[Any, tuple[Any, ...]]]:
        """Return a step's launches in order, and what each is called with."""
        scaler = found_inf is not None
        if scaler and grad_scale is None:
            grad_scale = torch.ones((), device=self.device)
        if scaler not in self._sequence:
            self._sequence[scaler] = self._sequence_of(plan, scaler)
        count = len(plan.tensors)
        prepare = (
            -(-count // TENSORS_PER_PROGRAM),
            plan.table,
            plan.rows,
            self._options,
            self._pointer_table,
            plan.maxima,
            found_inf if scaler else plan.rows,
            grad_scale if scaler else plan.rows,
            count,
        )
        steps = [(kernel, arguments()) for kernel, arguments in self._sequence[scaler]]
        return [(self._prepare[scaler], prepare), *steps]

    def _sequence_of(self, plan: Plan, scaler: bool) -> list[Entry]:
        """Return what follows the preparation; kernels are kept from plan to plan."""
        fast = _has_fast_math(self.device)
        if scaler not in self._prepare:
            self._prepare[scaler] = self._rule.prepare(scaler)
        before: list[Entry] = []
        after: list[Entry] = []
        for part in plan.launches:
            key = part.bucket, scaler
            if key not in self._passes:
                self._passes[key] = self._rule.passes(part.bucket, scaler, fast)
            for kernel, arguments, after_sums in self._passes[key]:
                if arguments(plan, part)[0]:
                    entry = kernel, partial(arguments, plan, part)
                    (after if after_sums else before).append(entry)
        found = [(self._rule.sums(part), part.members) for part in plan.launches]
        sums = [(part, members) for part, members in found if part is not None]
        if sums:
            before.insert(0, (Call(clearing([part for part, _ in sums])), tuple))
        add = adding(sums)
        between: list[Entry] = [] if add is None else [(Call(add), tuple)]
        return before + between + after

    def _upload_options(self, plan: Plan, groups: Sequence[Mapping[str, Any]]) -> None:
        rows = [self._rule.options(group) for group in groups]
        pointers = [
            [lr_pointer(group), self._clip.pointer(index, group)]
            for index, group in enumerate(groups)
        ]
        if rows != self._option_rows or pointers != self._pointers:
            self._option_rows, self._pointers = rows, pointers
            self._repeated = []
            self._options = plan.upload(torch.tensor(rows, dtype=torch.float64, device="cpu"))
            self._pointer_table = plan.upload(
                torch.tensor(pointers, dtype=torch.int64, device="cpu")
            )


@cache
def _has_fast_math(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None
