"""Steps taken within ``backward``, so that no more than a few gradients are there at a time."""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luma_core.codecs import Codec
from luma_core.errors import ConfigurationError
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.offload import Offloader
from luma_core.optim.step.lookups import lookups_by_row
from luma_core.optim.step.passes import Passes
from luma_core.optim.step.stepping import Stepper
from luma_core.rules import Rule
from luma_core.sharding import is_flattened

_DATA_PARALLEL = "torch.nn.parallel"


class StepsInBackward:
    """What `step_in_backward` set up; `remove` undoes it."""

    def __init__(self, model: nn.Module, optimizer: CompressedOptimizer) -> None:
        self._optimizer = optimizer
        # What is remembered of earlier steps does not see those that are taken here, and back.
        optimizer.forget_steps()
        params = [param for _, param, _ in optimizer.parameters_by_name()]
        if optimizer.offloader is not None:
            # Made one by one, each parameter's state would get a block or file of its own.
            optimizer.init_state()
        passes = Passes()
        self._handles = lookups_by_row(model, params) + passes.follow(model, params)
        self._handles += [
            param.register_post_accumulate_grad_hook(_Hook(optimizer, name, param, group, passes))
            for name, param, group in optimizer.parameters_by_name()
        ]

    def remove(self) -> None:
        """Let gradients stay after ``backward`` again, for ``optimizer.step()``."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizer.forget_steps()


def step_in_backward(model: nn.Module, optimizer: CompressedOptimizer) -> StepsInBackward:
    """Make ``backward`` step each parameter once its gradient is ready, and free the gradient.

    Results are those of ``optimizer.step()`` after ``backward``. Calling that too does nothing,
    and may go on for the sake of schedulers. Works with FSDP2 (``fully_shard``), whose gradients
    are ready once they are reduced. Gradients of looking up embeddings are made of rows, so that an
    output layer that is the token embedding has one gradient of its size, and briefly its sum with
    the rows.

    Under checkpoints with ``use_reentrant=True``, parameters of what is computed again are stepped
    at the end of ``backward``, for only then their gradients are whole: prefer
    ``use_reentrant=False``, where all are stepped as early as elsewhere.

    What needs all gradients together, or twice, does not work: clipping by their common norm,
    accumulation over several calls of ``backward``, ``GradScaler``, closures, parameters that are
    used by two models, and ``DistributedDataParallel``, which reduces gradients later.

    Args:
        model: whose parameters are stepped.
        optimizer: has exactly the parameters of ``model`` that need gradients.

    Raises:
        ConfigurationError: the optimizer needs all gradients together, has other parameters than
            the model, or the model is under ``DistributedDataParallel`` or
            ``FullyShardedDataParallel``. Raised in ``backward``: it makes a gradient in several
            parts, and the first was stepped.
    """
    parallel = sys.modules.get(_DATA_PARALLEL)
    if parallel is not None and isinstance(model, parallel.DistributedDataParallel):
        raise ConfigurationError(
            "model is a DistributedDataParallel, whose gradients are reduced after each is ready.",
            hint="Use fully_shard, or step after backward.",
        )
    if any(is_flattened(param) for _, param, _ in optimizer.parameters_by_name()):
        raise ConfigurationError(
            "model is under FullyShardedDataParallel, whose gradients are cut after each is ready.",
            hint="Use fully_shard, or step after backward.",
        )
    for group in optimizer.param_groups:
        if group.get("max_grad_norm") is not None or group["nonfinite"] == "raise":
            option = "nonfinite" if group["nonfinite"] == "raise" else "max_grad_norm"
            raise ConfigurationError(
                f"{option}={group[option]!r} needs all gradients together, and step_in_backward "
                "never has them.",
                hint="Leave the option out, or step after backward.",
            )
    needed = {param for param in model.parameters() if param.requires_grad}
    own = {param for _, param, _ in optimizer.parameters_by_name()}
    if needed != own:
        raise ConfigurationError(
            f"the optimizer has {len(own)} parameters, {len(needed - own)} that the model trains "
            f"are not among them, and {len(own - needed)} are not the model's.",
            hint="Build the optimizer over model.named_parameters(), after any sharding.",
        )
    return StepsInBackward(model, optimizer)


class _Hook:
    """Steps one parameter, with tables of its own."""

    def __init__(
        self,
        optimizer: CompressedOptimizer,
        name: str,
        param: Tensor,
        group: dict[str, Any],
        passes: Passes,
    ) -> None:
        self._name = name
        self._param = param
        self._passes = passes
        self._stepper = Stepper(_Alone(optimizer, name, param, group))

    def __call__(self, param: Tensor) -> None:
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()
        if self._passes.is_whole(self._name, self._param, self._step):
            self._step()

    @torch.no_grad()
    def _step(self) -> None:
        # With FSDP, what was registered on a parameter is called with its sharded form.
        self._stepper.step(grad_scale=None, found_inf=None)
        self._param.grad = None


class _Alone:
    """An optimizer as `Stepper` sees it, with one of its parameters."""

    def __init__(
        self, optimizer: CompressedOptimizer, name: str, param: Tensor, group: dict[str, Any]
    ) -> None:
        self._optimizer = optimizer
        self._name = name
        self._param = param
        self._group = group
        # A view: schedulers change the group's options.
        self.param_groups: list[Any] = [ChainMap({"params": [param]}, group)]
        self.rule: Rule = optimizer.rule

    @property
    def backend(self) -> str:
        return self._optimizer.backend

    @property
    def offloader(self) -> Offloader | None:
        return self._optimizer.offloader

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        found = self._optimizer.state.get(self._param)
        return {self._param: found} if found else {}

    def parameters_by_name(self) -> Iterator[tuple[str, Tensor, Any]]:
        yield self._name, self._param, self.param_groups[0]

    def codecs(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Codec]:
        return self._optimizer.codecs(param, self._group)

    def state_of(self, name: str, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        return self._optimizer.state_of(name, param, self._group)
