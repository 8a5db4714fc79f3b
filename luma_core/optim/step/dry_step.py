"""The step that PyTorch takes only so that state is there: at a rate of 0, with zeros as gradients.

``torch.distributed.checkpoint.state_dict`` takes one before it saves or loads the state of an
optimizer that has none, and puts the rates back. Counted, it would shift the bias correction and
the noise of the run that follows.
"""

from __future__ import annotations

import torch

from luma_core.optim.step.contracts import Steppable
from luma_core.rules.base import Reduction
from luma_core.rules.collective import reduce_parts
from luma_core.sharding import local_tensor, part_of


def is_dry(optimizer: Steppable) -> bool:
    """Return whether the step to be taken could change nothing but counters, on any process.

    That takes an optimizer without state, rates of 0, and zeros as the gradients of all parameters
    that need any. Others answer without a look at gradients.
    """
    if optimizer.state or any(float(group["lr"]) != 0 for group in optimizer.param_groups):
        return False
    params = [param for _, param, _ in optimizer.parameters_by_name() if param.requires_grad]
    grads = [param.grad for param in params]
    if not grads or any(grad is None or grad.is_sparse for grad in grads):
        return False
    # A process may have zeros where another has other values, and they must agree.
    counts = [
        (Reduction(torch.count_nonzero(local_tensor(grad)).view(1), "sum"), part_of(param))
        for param, grad in zip(params, grads, strict=True)
        if grad is not None
    ]
    return not any(bool(count) for count in reduce_parts(counts))
