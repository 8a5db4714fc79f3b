"""Weights of a sharded model in a checkpoint: whole tensors, each written by one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luma_core.checkpoint.agreement import Processes
from luma_core.checkpoint.model import check_model, model_tensors
from luma_core.checkpoint.reader import Checkpoint
from luma_core.checkpoint.shard import PlannedTensor
from luma_core.checkpoint.together import shared_out
from luma_core.errors import UnsupportedParameterError
from luma_core.sharding import gathered, is_flattened, local_tensor, part_of


def planned(name: str, tensor: Tensor) -> PlannedTensor:
    """Return a tensor to be written as it is."""
    return PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def planned_weights(
    model: nn.Module, processes: Processes
) -> tuple[list[PlannedTensor], dict[str, str]]:
    """Return the weights that this process writes, put together, and all aliases.

    All processes call it together.

    Raises:
        ConfigurationError: the state dict holds something else than dense tensors.
        UnsupportedParameterError: the model is under FSDP1.
    """
    # A process that has no element of two tensors cannot tell them from one.
    aliases = processes.agreed(lambda: _aliases(model))[0]
    tensors = {name: value for name, value in model.state_dict().items() if name not in aliases}
    sizes = [value.numel() * value.element_size() for value in tensors.values()]
    mine = shared_out(sizes, processes.world)[processes.rank]
    found = []
    for index, (name, value) in enumerate(tensors.items()):
        part = part_of(value)
        whole = gathered(value) if part is not None and part.cut else local_tensor(value)
        if index in mine:
            found.append(planned(name, whole.detach()))
    return found, aliases


def _aliases(model: nn.Module) -> dict[str, str]:
    for name, param in model.named_parameters():
        if is_flattened(param):
            raise UnsupportedParameterError(
                f"model parameter {name!r} is a flat one of FullyShardedDataParallel.",
                hint="Save weights with torch.distributed.checkpoint, or use fully_shard.",
            )
    return model_tensors(model)[1]


@torch.no_grad()
def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Copy the stored weights into the model, one at a time.

    Of tensors that are cut along dimension 0, only the rows of this process are read.
    """
    entries = check_model(checkpoint.manifest, model)
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        part = part_of(value)
        if part is None or not part.cut:
            local_tensor(value).copy_(checkpoint.read_tensor(entries[name]))
            continue
        rows, *rest = part.slices
        stored = checkpoint.read_tensor(entries[name], rows=rows)
        local_tensor(value).copy_(stored[(slice(None), *rest)])
