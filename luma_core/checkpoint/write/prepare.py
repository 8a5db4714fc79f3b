"""Before the first save behind training: the memory for its copies."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from luma_core.checkpoint.format.any_optimizer import AnyOptimizers, memory_owner, state_of_any
from luma_core.checkpoint.format.plan import SavableState, plan_save, refuse_sharded
from luma_core.checkpoint.staging.staged import provide
from luma_core.checkpoint.write.options import MAX_SHARD_BYTES


def prepare(
    *,
    optimizer: SavableState | AnyOptimizers,
    model: nn.Module | None = None,
    extra: Any = None,
) -> None:
    """Get the memory for the copies of ``save(..., wait=False)`` now, behind the caller.

    Without it, the system provides that memory while the first such save copies: weights and
    ``extra`` in the call, and state where a step follows before it was written, or of CUDA devices
    always, behind the caller. The process then holds one copy of what will be saved from here on,
    but for state on disk, which is never copied. A save that comes before all is there gets the
    rest itself.

    Args:
        optimizer: that will be saved, directly or through a manager. Where it has no state yet, the
            memory is provided for after its next ``step``.
        model: as for `save`.
        extra: as for `save`; what counts are the tensors' dtypes and shapes.

    Raises:
        ConfigurationError: the optimizer, the model or ``extra`` holds what `save` refuses.
    """
    state = state_of_any(optimizer, model)
    refuse_sharded(state)
    plan = plan_save(state, model, extra, MAX_SHARD_BYTES)
    owner = memory_owner(state)
    if isinstance(owner, Optimizer) and not any(entry.codecs for entry in plan.parameters):
        owner.register_step_post_hook(_Once(optimizer, model, extra))
    else:
        provide(owner, plan)


class _Once:
    """A hook that prepares when it is called first."""

    def __init__(self, optimizer: Any, model: nn.Module | None, extra: Any) -> None:
        self._given: tuple[Any, nn.Module | None, Any] | None = (optimizer, model, extra)

    def __call__(self, owner: Any, _args: tuple[Any, ...], _options: dict[str, Any]) -> None:
        # A hook cannot remove itself while PyTorch goes through them.
        given, self._given = self._given, None
        if given is not None:
            optimizer, model, extra = given
            state = state_of_any(optimizer, model)
            provide(owner, plan_save(state, model, extra, MAX_SHARD_BYTES))
