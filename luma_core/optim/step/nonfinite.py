"""The check behind ``nonfinite="raise"``: looks at every gradient before anything changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luma_core.codecs import BlockGrid
from luma_core.errors import NonFiniteGradientError
from luma_core.rules.base import Reduction
from luma_core.rules.collective import reduce_parts
from luma_core.sharding import Part, local_tensor

_SHOWN = 5


def raise_if_nonfinite(grads: Sequence[tuple[str, Tensor, Part | None]]) -> None:
    """Check gradients given with their parameters' names and parts; waits for their devices.

    What one process finds in its part, all processes raise.

    An element counts when its square is not finite in float32, since that is what the second
    moment would take in.

    Raises:
        NonFiniteGradientError: names the first parameters and their counts.
    """
    found = [
        (Reduction(_count(local_tensor(grad)).view(1), "sum"), part) for _, grad, part in grads
    ]
    counts = zip(grads, reduce_parts(found), strict=True)
    bad = [(name, int(count)) for (name, _, _), count in counts if count]
    if not bad:
        return
    shown = ", ".join(f"{name!r} ({count} elements)" for name, count in bad[:_SHOWN])
    more = f" and {len(bad) - _SHOWN} more parameters" if len(bad) > _SHOWN else ""
    raise NonFiniteGradientError(
        f"non-finite gradient in {shown}{more}; nothing was updated.",
        hint="Lower the learning rate, clip the gradients, or use nonfinite='skip'.",
    )


def _count(grad: Tensor) -> Tensor:
    count = torch.zeros((), dtype=torch.int64, device=grad.device)
    for tile in BlockGrid.of(grad.shape, None).tiles():
        count += (~torch.isfinite(tile.read(grad).float().square())).sum()
    return count
