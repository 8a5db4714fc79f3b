"""Where a ``backward`` begins and ends, and which gradients it makes in several parts.

A reentrant checkpoint (``use_reentrant=True``) computes its part of the model again within
``backward``, and calls ``backward`` for that part alone. Each such call adds to the gradients of
the parameters that it reaches, so they are whole only at the end of the outermost one.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction

from luma_core.errors import ConfigurationError

_CALLS = [torch.autograd.backward.__code__, torch.autograd.grad.__code__]
_NODES = [
    getattr(BackwardCFunction, name).__code__
    for name in ("apply", "apply_boxed")
    if hasattr(BackwardCFunction, name)
]
_HINT = "Call checkpoint with use_reentrant=False, or step after backward."


def _nested() -> bool:
    """Return whether this runs in a ``backward`` that a node of another one has called.

    The engine does not tell. A hook that a node calls by itself, as FSDP2's do, is not nested.
    """
    frame: FrameType | None = sys._getframe()
    called = False
    while frame is not None:
        if any(frame.f_code is code for code in _CALLS):
            called = True
        elif called and any(frame.f_code is code for code in _NODES):
            return True
        frame = frame.f_back
    return False


class Passes:
    """Says of each gradient that is made whether it is whole, and calls back for others at the end.

    What a model recomputes is found by its modules: those that are called without gradients in a
    call of the model with gradients. Gradients of their parameters wait, since a use elsewhere may
    have its share ready before. So does a gradient that a call within ``backward`` made. All others
    are whole at once.
    """

    def __init__(self) -> None:
        self._task: int | None = None
        self._end: weakref.ref[_End] | None = None
        self._evaluates = False
        self._in_parts: set[Tensor] = set()
        self._waiting: dict[Tensor, Callable[[], None]] = {}
        self._whole: set[Tensor] = set()

    def follow(self, model: nn.Module, params: Iterable[Tensor]) -> list[Any]:
        """Follow calls of the modules that have any of ``params``; return handles to remove."""
        own = set(params)
        found = {module: own.intersection(module.parameters()) for module in model.modules()}
        return [
            module.register_forward_pre_hook(_Called(self, module is model, params), prepend=True)
            for module, params in found.items()
            if params
        ]

    def called(self, params: set[Tensor], *, root: bool) -> None:
        """Note that the model, or a module of it, is called, in ``backward`` or before."""
        if torch._C._current_graph_task_id() != -1:
            if not _nested():
                self._begin()
        elif root:
            self._evaluates = not torch.is_grad_enabled()
        elif not self._evaluates and not torch.is_grad_enabled():
            self._in_parts |= params

    def is_whole(self, name: str, param: Tensor, at_end: Callable[[], None]) -> bool:
        """Return whether a parameter's new gradient is whole; if not, arrange for ``at_end``.

        Raises:
            ConfigurationError: it was whole before, or nobody can tell when it will be.
        """
        if _nested():
            if not self._under_way:
                raise ConfigurationError(
                    f"the gradient of {name!r} is made in a reentrant checkpoint that calls no "
                    "module, and step_in_backward cannot tell where the backward around it ends.",
                    hint=_HINT,
                )
            self._in_parts.add(param)
        else:
            self._begin()
        if param in self._whole:
            raise ConfigurationError(
                f"the gradient of {name!r} is made in several parts in one backward, and "
                "step_in_backward has stepped the first.",
                hint=_HINT,
            )
        if param in self._in_parts:
            self._waiting[param] = at_end
            return False
        self._whole.add(param)
        return True

    @property
    def _under_way(self) -> bool:
        """Whether the ``backward`` that was begun goes on; one that failed let go of its end."""
        return self._end is not None and self._end() is not None

    def _begin(self) -> None:
        """See to it that the end of this outermost ``backward`` is noticed."""
        task = torch._C._current_graph_task_id()
        if task == self._task and self._under_way:
            return
        if self._under_way:
            raise ConfigurationError(
                "a reentrant checkpoint runs on other devices than the backward around it, and "
                "step_in_backward cannot tell where that ends.",
                hint=_HINT,
            )
        self._waiting.clear()
        self._whole.clear()
        end = _End(self)
        Variable._execution_engine.queue_callback(end)
        self._task, self._end = task, weakref.ref(end)

    def end(self) -> None:
        """Take what waits: the outermost ``backward`` has made all gradients."""
        waiting, self._waiting = self._waiting, {}
        self._end = None
        self._whole.clear()
        self._in_parts.clear()
        for at_end in waiting.values():
            at_end()


class _End:
    """What a ``backward`` calls at its end, and keeps until then."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self) -> None:
        self._passes.end()


class _Called:
    """A module's hook that tells `Passes` of each call."""

    def __init__(self, passes: Passes, root: bool, params: set[Tensor]) -> None:
        self._passes = passes
        self._root = root
        self._params = params

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling():
            self._passes.called(self._params, root=self._root)
