"""State of FSDP1's flat parameters, under the names and shapes of the parameters in them.

``FullyShardedDataParallel`` lays a module's parameters end to end in one flat tensor, and cuts that
anywhere. Only its own tools know which elements are whose, and they take AdamW's state. So moments
go through them as float32, and are coded anew, by rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luma_core.errors import ConfigurationError, StateMismatchError, some_names
from luma_core.optim.adamw_state import AdamWStateOptimizer
from luma_core.optim.options import PARAMETER_DTYPES
from luma_core.optim.state_io.interchange import adamw_group
from luma_core.rules.adamw import MOMENTS
from luma_core.sharding import is_flattened, is_sharded, local_tensor, part_at

if TYPE_CHECKING:
    from torch.distributed.fsdp import FullyShardedDataParallel

_DTYPE = "dtype"


def unflattened(model: nn.Module, optimizer: AdamWStateOptimizer) -> AdamWStateOptimizer:
    """Return an optimizer of the parameters that FSDP1 laid in flat ones, to save or to load into.

    All processes call it together. Its parameters have the model's names and whole shapes, are
    DTensors cut by rows, and have no values; its state is a copy of the optimizer's, coded anew.
    `save_sharded` and `load_sharded` take it, `export_adamw_state` exports it, and
    `load_unflattened` puts its state back. Counters of non-finite blocks begin at 0.

    Memory while it runs: 16 bytes per element of this process's part, and the moments of one flat
    parameter at a time, whole and in float32, where FSDP1 puts them together.

    Args:
        model: under ``FullyShardedDataParallel``, with ``use_orig_params`` or without.
        optimizer: of its parameters.

    Raises:
        ConfigurationError: the model is not under ``FullyShardedDataParallel``, or the optimizer
            has other parameters.
    """
    root = _checked(model, optimizer)
    optimizer.init_state()
    named = _named_state(root, _Moments(optimizer, filled=True))
    entries = {name: _entry(root, entry) for name, entry in named["state"].items()}
    groups = [
        [name for name in group["params"] if name in entries] for group in named["param_groups"]
    ]
    made = _optimizer_like(optimizer, groups, entries)
    made.import_adamw_state(
        {
            "state": {name: _without_dtype(entry) for name, entry in entries.items()},
            "param_groups": [
                {**adamw_group(options), "params": names}
                for options, names in zip(made.param_groups, groups, strict=True)
            ],
        }
    )
    return made


def load_unflattened(
    model: nn.Module, optimizer: AdamWStateOptimizer, named: AdamWStateOptimizer
) -> None:
    """Put the state of what `unflattened` returned into the optimizer of the flat parameters.

    All processes call it together. Options are adopted as by `import_adamw_state`; codecs and seed
    stay the optimizer's.

    Args:
        model: as given to `unflattened`.
        optimizer: as given to `unflattened`; its state is replaced.
        named: what `unflattened` returned, after other state was loaded into it.

    Raises:
        ConfigurationError: the model is not under ``FullyShardedDataParallel``, or the optimizer
            has other parameters.
        StateMismatchError: ``named`` is of other parameters; nothing was changed.
    """
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    root, flat = _checked(model, optimizer), _Moments(optimizer, filled=False)
    wanted = _named_state(root, flat)
    _check_names(wanted["state"], named.parameter_names())
    exported = named.export_adamw_state()["state"]
    for index, name in enumerate(named.parameter_names()):
        entry = wanted["state"][name]
        entry["step"] = torch.tensor(0.0, device="cpu")
        if index in exported:
            entry["step"] = exported[index]["step"]
            for moment in MOMENTS:
                _local(entry[moment]).copy_(local_tensor(exported[index][moment]))
    set_optimizer_state_dict(root, flat, wanted)
    groups = [
        {**adamw_group(options), "params": saved["params"]}
        for options, saved in zip(named.param_groups, flat.loaded["param_groups"], strict=True)
    ]
    entries = {key: _without_dtype(entry) for key, entry in flat.loaded["state"].items()}
    optimizer.import_adamw_state({"state": entries, "param_groups": groups})


def _checked(model: nn.Module, optimizer: AdamWStateOptimizer) -> FullyShardedDataParallel:
    from torch.distributed.fsdp import FullyShardedDataParallel

    if not isinstance(model, FullyShardedDataParallel):
        raise ConfigurationError(
            f"model is a {type(model).__name__}; it must be a FullyShardedDataParallel.",
            hint="Parameters that fully_shard cut need no unflattening.",
        )
    has_mesh = getattr(model, "_device_mesh", None) is not None
    if "HYBRID" in model.sharding_strategy.name and not has_mesh:
        raise ConfigurationError(
            f"model has sharding_strategy={model.sharding_strategy.name} and no device_mesh, so "
            "that its replicas do not know of each other.",
            hint="Wrap the model with device_mesh=init_device_mesh(...) of two dimensions.",
        )
    theirs = {id(param) for param in model.parameters()}
    strange = [name for name, param, _ in optimizer.parameters_by_name() if id(param) not in theirs]
    plain = [name for name, param, _ in optimizer.parameters_by_name() if not is_flattened(param)]
    if strange or plain:
        raise ConfigurationError(
            f"parameter {(strange + plain)[0]!r} of the optimizer is not one that the model's "
            "FullyShardedDataParallel made.",
            hint="Build the optimizer over model.named_parameters(), after wrapping the model.",
        )
    return model


def _check_names(own: Iterable[str], given: Iterable[str]) -> None:
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unknown:
        raise StateMismatchError(
            f"named lacks parameters {some_names(missing)} of the model, and has "
            f"{some_names(unknown)} that are not the model's.",
            hint="Give what unflattened(model, optimizer) returned for this model.",
        )


class _Moments(torch.optim.Optimizer):
    """AdamW's state of an optimizer's flat parameters, as PyTorch's tools take it.

    Args:
        optimizer: whose parameters they are.
        filled: whether it has that optimizer's moments, or zeros.
    """

    def __init__(self, optimizer: AdamWStateOptimizer, *, filled: bool) -> None:
        groups = [{"params": group["params"]} for group in optimizer.param_groups]
        super().__init__(groups, {"lr": 0.0})
        self.loaded: dict[str, Any] = {}
        for (_, param, _), state in zip(
            optimizer.parameters_by_name(), optimizer.parameter_states(), strict=True
        ):
            if not param.numel():
                continue
            for moment in MOMENTS:
                zeros = torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
                self.state[param][moment] = state.decode(moment) if filled else zeros
            self.state[param]["step"] = torch.tensor(float(state.step), device="cpu")
            dtype = PARAMETER_DTYPES.index(param.dtype)
            self.state[param][_DTYPE] = torch.tensor(float(dtype), device="cpu")

    def step(self, closure: Any = None) -> Any:
        """Do nothing: PyTorch's tools take a step where there is no state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what was loaded; casting it to the parameters' dtype would round it."""
        self.loaded = state_dict


def _named_state(root: FullyShardedDataParallel, flat: _Moments) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    found: dict[str, Any] = get_optimizer_state_dict(root, flat)
    return found


def _local(value: Any) -> Tensor:
    """Return this process's rows of what FSDP1 gives for a moment."""
    if not _is_sharded_tensor(value):
        return local_tensor(value)
    shards = value.local_shards()
    found: Tensor = (
        shards[0].tensor if shards else torch.empty((0, *value.size()[1:]), device="cpu")
    )
    return found


def _is_sharded_tensor(value: Any) -> bool:
    """Return whether a value is a ``ShardedTensor``, which FSDP1 gives where it has no mesh."""
    return hasattr(value, "local_shards")


def _entry(root: FullyShardedDataParallel, entry: dict[str, Any]) -> dict[str, Tensor]:
    """Return a parameter's entry with moments that are DTensors, or whole tensors."""
    return {
        key: _as_dtensor(root, value) if key in MOMENTS else value for key, value in entry.items()
    }


def _as_dtensor(root: FullyShardedDataParallel, value: Any) -> Tensor:
    if not _is_sharded_tensor(value):
        found: Tensor = value
        return found
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    group, device = root.process_group, root.compute_device
    assert group is not None
    assert device is not None
    mesh = DeviceMesh.from_group(group, device.type)
    local = _local(value).to(device)
    return part_at(tuple(value.size()), mesh, (Shard(0),)).like_whole(local)


def _without_dtype(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != _DTYPE}


def _optimizer_like(
    optimizer: AdamWStateOptimizer,
    groups: list[list[str]],
    entries: dict[str, dict[str, Tensor]],
) -> AdamWStateOptimizer:
    """Return an optimizer with the same options, of parameters without values."""
    made: Any = type(optimizer)
    built: AdamWStateOptimizer = made(
        [
            {
                **options,
                "betas": tuple(options["betas"]),
                "params": [(name, _without_values(entries[name])) for name in names],
            }
            for options, names in zip(optimizer.group_options(), groups, strict=True)
        ],
        seed=0,
    )
    return built


def _without_values(entry: dict[str, Tensor]) -> Tensor:
    moment, dtype = entry[MOMENTS[0]], PARAMETER_DTYPES[int(entry[_DTYPE])]
    local = local_tensor(moment)
    empty = torch.zeros((), dtype=dtype, device=local.device).expand(local.shape)
    if not is_sharded(moment):
        return nn.Parameter(empty)
    part = part_at(tuple(moment.shape), moment.device_mesh, tuple(moment.placements))
    return nn.Parameter(part.like_whole(empty))
