"""Weights of a sharded model in a checkpoint: whole tensors, each written by one process."""

from __future__ import annotations

from torch import Tensor, nn

from luma_core.carried import gathered
from luma_core.checkpoint.agreement import Processes
from luma_core.checkpoint.manifest import TensorEntry
from luma_core.checkpoint.model import model_tensors
from luma_core.checkpoint.model_loading import ModelLoad
from luma_core.checkpoint.reader import Checkpoint
from luma_core.checkpoint.shard import PlannedTensor
from luma_core.checkpoint.together import shared_out
from luma_core.errors import StateMismatchError, UnsupportedParameterError
from luma_core.sharding import is_flattened, local_tensor, part_of


def planned(name: str, tensor: Tensor) -> PlannedTensor:
    """Return a tensor to be written as it is."""
    return PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def planned_weights(
    model: nn.Module, processes: Processes
) -> tuple[list[PlannedTensor], dict[str, str]]:
    """Return the weights that this process writes, put together, and all aliases.

    All processes call it together.

    Raises:
        ConfigurationError: the state dict holds something that cannot be kept exactly.
        UnsupportedParameterError: the model is under FSDP1.
    """
    # A process that has no element of two tensors cannot tell them from one, and what a value that
    # is no tensor takes may differ between processes.
    found: list[dict[str, Tensor]] = []
    sizes, aliases = processes.agreed(lambda: _own_weights(model, found))[0]
    owners = shared_out(list(sizes.values()), processes.world)[processes.rank]
    mine = {name for index, name in enumerate(sizes) if index in owners}
    planned_ones = []
    for name in sizes:
        value = found[0].get(name)
        part = None if value is None else part_of(value)
        if value is not None and part is not None and part.cut:
            value = gathered(value)
        if name in mine:
            if value is None:
                raise StateMismatchError(
                    f"the model has no {name!r} in process {processes.rank}, only in process 0.",
                    hint="All processes must save the same model.",
                )
            planned_ones.append(planned(name, local_tensor(value).detach()))
    return planned_ones, aliases


def _own_weights(
    model: nn.Module, found: list[dict[str, Tensor]]
) -> tuple[dict[str, int], dict[str, str]]:
    """Put this process's weights into ``found``; return sizes of those to write, and aliases."""
    for name, param in model.named_parameters():
        if is_flattened(param):
            raise UnsupportedParameterError(
                f"model parameter {name!r} is a flat one of FullyShardedDataParallel.",
                hint="Save weights with torch.distributed.checkpoint, or use fully_shard.",
            )
    tensors, aliases = model_tensors(model)
    state = model.state_dict()
    found.append({**tensors, **{name: state[name] for name in aliases}})
    return {n: t.numel() * t.element_size() for n, t in tensors.items()}, aliases


def load_weights(checkpoint: Checkpoint, load: ModelLoad) -> None:
    """Copy the stored weights into the model, one at a time.

    Of tensors that are cut along dimension 0, only the rows of this process are read.
    """

    def local(entry: TensorEntry, own: object) -> Tensor:
        part = part_of(own) if isinstance(own, Tensor) else None
        if part is None or not part.cut:
            return checkpoint.read_tensor(entry)
        rows, *rest = part.slices
        return checkpoint.read_tensor(entry, rows=rows)[(slice(None), *rest)]

    def like(entry: TensorEntry, own: object) -> Tensor:
        part = part_of(own) if isinstance(own, Tensor) else None
        found = local(entry, own)
        return found if part is None else part.like_whole(found.contiguous())

    load.run(
        checkpoint.read_tensor,
        fill=lambda target, entry: local_tensor(target).copy_(local(entry, target)),
        like=like,
    )
