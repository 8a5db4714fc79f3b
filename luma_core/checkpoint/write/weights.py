"""Weights of a sharded model in a checkpoint: whole tensors, each written by one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from luma_core.carried import gathered
from luma_core.checkpoint.format.manifest import TensorEntry
from luma_core.checkpoint.format.model import VALUE_MARK, model_tensors
from luma_core.checkpoint.format.shard import PlannedTensor
from luma_core.checkpoint.read.model_loading import ModelLoad
from luma_core.checkpoint.read.reader import Checkpoint
from luma_core.checkpoint.write.owners import LocalCopy, Owners
from luma_core.checkpoint.write.parts import local_copy
from luma_core.errors import ConfigurationError, UnsupportedParameterError
from luma_core.sharding import Part, is_flattened, local_tensor, part_of
from luma_core.state import LoadReport


def plan_tensor(name: str, tensor: Tensor) -> PlannedTensor:
    """Return a tensor to be written as it is."""
    return PlannedTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


class LocalWeights:
    """The weights of which this process has a part.

    Buffers, and values that are no tensors, may differ between processes, as running statistics do
    under DDP: those of the first process count.

    Args:
        model: whose weights they are.

    Raises:
        ConfigurationError: the state dict holds something that cannot be kept exactly.
        UnsupportedParameterError: the model is under FSDP1.
    """

    def __init__(self, model: nn.Module) -> None:
        for name, param in model.named_parameters():
            if is_flattened(param):
                raise UnsupportedParameterError(
                    f"model parameter {name!r} is a flat one of FullyShardedDataParallel.",
                    hint="Save weights with torch.distributed.checkpoint, or use fully_shard.",
                )
        tensors, aliases = model_tensors(model)
        state = model.state_dict()
        tensors |= {alias: state[alias] for alias in aliases}
        self._tensors: dict[str, tuple[Tensor, Part | None]] = {}
        for name, value in tensors.items():
            part = part_of(value)
            if part is None or part.here:
                self._tensors[name] = value.detach(), part
        # Who has no element of two tensors cannot tell them from one.
        self.known = {name for name, (value, _) in self._tensors.items() if _filled(value)}
        self.aliases = {alias: name for alias, name in aliases.items() if alias in self.known}
        self._buffers = {
            local_tensor(buffer).data_ptr() for buffer in model.buffers() if buffer.numel()
        }

    def copies(self, *, checked: bool) -> dict[str, LocalCopy]:
        """Return what this process has of each tensor, by name."""
        found = {}
        for name, (value, part) in self._tensors.items():
            free = VALUE_MARK in name or local_tensor(value).data_ptr() in self._buffers
            size = value.numel() * value.element_size()
            sizes = (0, size) if part is not None and part.cut else (size, 0)
            facts = {"dtype": str(value.dtype)}
            found[name] = local_copy(
                value.shape, part, facts, {}, *sizes, checked=checked and not free
            )
        return found

    def tensors(self, name: str) -> list[Tensor]:
        """Return the tensor that this process has of a weight."""
        return [local_tensor(self._tensors[name][0])]

    def plan(self, owners: Mapping[str, Owners], process: int) -> list[PlannedTensor]:
        """Return what this process writes; all that have a part of a tensor call it together.

        Args:
            owners: who writes each tensor, in the same order in all processes.
            process: the number of this one.
        """
        found = []
        for name, owner in owners.items():
            if name in self._tensors:
                value, part = self._tensors[name]
                whole = gathered(value) if part is not None and part.cut else local_tensor(value)
                if owner.whole == process:
                    found.append(plan_tensor(name, whole))
        return found


def _filled(value: Tensor) -> bool:
    return local_tensor(value).numel() > 0


def find_common_aliases(by_process: Sequence[tuple[Mapping[str, str], set[str]]]) -> dict[str, str]:
    """Return the aliases that hold in all processes which can tell.

    Args:
        by_process: of each process its aliases, and the tensors of which it has an element.
    """
    found: dict[str, str] = {}
    for aliases, _ in by_process:
        for alias, name in aliases.items():
            found.setdefault(alias, name)
    return {
        alias: name
        for alias, name in found.items()
        if all(aliases.get(alias) == name for aliases, known in by_process if alias in known)
    }


def values_of_first(by_process: Sequence[Mapping[str, LocalCopy]]) -> list[dict[str, LocalCopy]]:
    """Leave out values that are no tensors where an earlier process has one under the same key.

    Such a value takes several tensors, which may be others in each process.

    Args:
        by_process: the copies of each process, by name.
    """
    owner: dict[str, int] = {}
    for process, copies in enumerate(by_process):
        for name in copies:
            if VALUE_MARK in name:
                owner.setdefault(name.partition(VALUE_MARK)[0], process)
    return [
        {
            name: copy
            for name, copy in copies.items()
            if VALUE_MARK not in name or owner[name.partition(VALUE_MARK)[0]] == process
        }
        for process, copies in enumerate(by_process)
    ]


def check_models(given: Sequence[bool]) -> None:
    """Check that all processes were given a model, or none.

    Raises:
        ConfigurationError: some were not.
    """
    if len(set(given)) > 1:
        raise ConfigurationError(
            f"model is None in rank {given.index(False)} but not in rank {given.index(True)}.",
            hint="Give a model in all processes or in none; one without weights will do.",
        )


def load_weights(checkpoint: Checkpoint, load: ModelLoad) -> LoadReport:
    """Copy the stored weights into the model, one at a time; return what found no counterpart.

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

    return load.run(
        checkpoint.read_tensor,
        fill=lambda target, entry: local_tensor(target).copy_(local(entry, target)),
        like=like,
    )
