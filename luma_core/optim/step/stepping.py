"""Takes an optimizer's step: the order of checks, and what need not be decided again."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from luma_core import changes
from luma_core.optim.options import check_adamw_keywords, check_gradient
from luma_core.optim.step.clipping import GradientClip
from luma_core.optim.step.collecting import LocalTensors, collect
from luma_core.optim.step.contracts import Steppable, StepPlan
from luma_core.optim.step.nonfinite import raise_if_nonfinite
from luma_core.optim.step.resident_plan import ResidentPlan
from luma_core.optim.step.watch import Change, Watch
from luma_core.sharding import Part, is_sharded, part_of
from luma_core.values import has_values


def _whole(scalar: Tensor | None) -> Tensor | None:
    """Return a number of all processes as a plain tensor."""
    return scalar.full_tensor() if is_sharded(scalar) else scalar


class Stepper:
    """Steps one optimizer, and remembers what need not be decided again at every step.

    A step plan may keep tables of the tensors. They stay valid while `Watch` sees no change.
    """

    def __init__(self, optimizer: Steppable) -> None:
        self._optimizer = optimizer
        self._offloader = optimizer.offloader
        if self._offloader is None:
            self._plan: StepPlan = ResidentPlan(optimizer)
        else:
            self._plan = self._offloader.step_plan(optimizer)
        self._tensors = LocalTensors()
        self._watch: Watch | None = None

    def reset(self) -> None:
        """Forget everything, since state or parameters were replaced."""
        self._watch = None
        self._tensors.clear()
        self._plan.clear()

    @property
    def all_fused(self) -> bool:
        """Whether every parameter with a gradient goes to a fused step."""
        self._prepare()
        return self._plan.all_fused

    def step(self, *, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Take the step; nothing changes if any gradient is refused.

        Args:
            grad_scale: what gradients were multiplied by, given by a GradScaler.
            found_inf: nonzero where the GradScaler asks to skip the step.
        """
        grad_scale, found_inf = _whole(grad_scale), _whole(found_inf)
        groups = self._optimizer.param_groups
        for group in groups:
            # Groups never keep these, so they are here only where they were set by hand.
            check_adamw_keywords(group, self._optimizer.rule.torch_options)
        if any(group["nonfinite"] == "raise" for group in groups):
            raise_if_nonfinite(list(self._must_be_finite()))
        self._prepare()
        clip = None
        if any(group.get("max_grad_norm") is not None for group in groups):
            clip = GradientClip(self._plan.square_sums())
        if changes.anybody_reads():
            changes.before_change(self._changing())
        self._plan.launch(grad_scale=grad_scale, found_inf=found_inf, clip=clip)
        self._tensors.release()

    def _must_be_finite(self) -> Iterator[tuple[str, Tensor, Part | None]]:
        """Yield the gradients under ``nonfinite="raise"`` that have values."""
        for name, param, group in self._optimizer.parameters_by_name():
            if group["nonfinite"] == "raise" and param.grad is not None:
                check_gradient(name, param, param.grad)
                if has_values(param.grad):
                    yield name, param.grad, part_of(param)

    def _changing(self) -> Iterator[Tensor]:
        """Yield the state that the step changes, but for what it brings from elsewhere."""
        state, offloader = self._optimizer.state, self._offloader
        for _, param, _ in self._optimizer.parameters_by_name():
            if param.grad is not None and (offloader is None or not offloader.takes(param)):
                yield from state[param].values()

    def _prepare(self) -> None:
        """Decide where each parameter goes, unless that was decided for the same tensors."""
        optimizer = self._optimizer
        self._tensors.follow()
        if self._tables_hold():
            return
        parameters = collect(optimizer, self._tensors)
        if self._offloader is not None and self._offloader.adopt():
            parameters = collect(optimizer, self._tensors)
        self._plan.build(parameters)
        if self._plan.keeps:
            self._watch = Watch(optimizer.param_groups, optimizer.state)

    def _tables_hold(self) -> bool:
        """Return whether all is decided already, after bringing gradients' addresses up to date."""
        watch, self._watch = self._watch, None
        if watch is None:
            return False
        change = watch.change(self._optimizer.param_groups, self._optimizer.state)
        if change is Change.NOTHING and self._tensors.copied:
            change = Change.GRADIENTS
        if change is Change.GRADIENTS and self._plan.follow_gradients():
            change = Change.NOTHING
        if change is not Change.NOTHING:
            return False
        self._watch = watch
        return True
