"""State as it was at one moment, in files that share blocks with those of the state."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from luma_core.optim.offload.arena import like
from luma_core.sharding import local_tensor


class Snapshot:
    """Finds the frozen bytes of stored tensors; steps that follow do not change them.

    They may be read by any thread. Their room on the disk is given back when neither this nor any
    tensor that it returned is there any more.

    Args:
        frozen: uint8, the frozen bytes of a block, by the address of the block that state is in.
    """

    def __init__(self, frozen: Mapping[int, Tensor]) -> None:
        self._frozen = frozen

    def __call__(self, live: Tensor) -> Tensor | None:
        """Return the frozen bytes of a stored tensor, as a mapped tensor of the same kind.

        ``None`` where it is in no file, and so not frozen.

        Args:
            live: of ``optimizer.state[p]``; contiguous, or a DTensor of such.
        """
        local = local_tensor(live)
        storage = local.untyped_storage().data_ptr()
        frozen = self._frozen.get(storage)
        if frozen is None:
            return None
        first = local.data_ptr() - storage
        run = frozen[first : first + local.nbytes]
        return like(live, run.view(local.dtype).view(local.shape))
