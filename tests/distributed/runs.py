"""Equal training runs with whole and with sharded parameters, for every optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from luma_core import LAMB, LUMA, Adam, AdamMini, Lion, Muon, NAdamW, QHAdamW, RAdam, TurboAdam
from luma_core.optim.base import CompressedOptimizer

SHAPES = {
    "embed_tokens.weight": (37, 64),
    "layers.0.q_proj.weight": (64, 130),
    "layers.0.up_proj.weight": (96, 288),
    "layers.0.few.weight": (3, 200),
    "layers.0.conv.weight": (8, 3, 3, 3),
    "layers.0.up_proj.bias": (96,),
    "norm.weight": (5,),
}
"""Uneven under 2, 3 and 4 parts; fewer rows than parts; flat tensors; heads that parts cut."""

FLAT = {"long": (1024 * 3 * 128,)}
"""A flat tensor whose blocks no part of 1, 2, 3 or 4 cuts."""

ROWS = (Shard(0),)

Make = Callable[[Iterable[tuple[str, Tensor]]], CompressedOptimizer]

EAGER = {"seed": 3, "backend": "pytorch"}
"""For what is stepped in PyTorch where it is cut; others must take the same backend by default."""

OPTIMIZERS: dict[str, Make] = {
    "luma": lambda p: LUMA(p, seed=3),
    "luma_eager": lambda p: LUMA(p, **EAGER),
    "luma_whole": lambda p: LUMA(p, block_size=None, **EAGER),
    "luma_raise": lambda p: LUMA(p, seed=3, nonfinite="raise", maximize=True),
    "turbo_5bit": lambda p: TurboAdam(p, seed=3),
    "turbo_8bit": lambda p: TurboAdam(p, seed=3, preset="8bit"),
    "turbo_eager": lambda p: TurboAdam(p, **EAGER),
    "turbo_costate": lambda p: TurboAdam(
        p, seed=3, m_codec="costate", error_feedback=True, min_m_compress_elements=0
    ),
    "mini": lambda p: AdamMini(p, n_heads=4, **EAGER),
    "mini_fp8": lambda p: AdamMini(p, n_heads=4, m_dtype="fp8", **EAGER),
    "mini_whole": lambda p: AdamMini(p, n_heads=4, m_dtype="fp8", block_size=None, **EAGER),
    "lamb": lambda p: LAMB(p, **EAGER),
    "lion": lambda p: Lion(p, seed=3),
    "lion_whole": lambda p: Lion(p, block_size=None, **EAGER),
    "adam_coupled": lambda p: Adam(p, seed=3, weight_decay=0.1),
    "nadamw_scheduled": lambda p: NAdamW(p, seed=3, momentum_decay=4e-3),
    "qhadamw_whole": lambda p: QHAdamW(p, nus=(0.7, 0.9), block_size=None, **EAGER),
    "radam_coupled": lambda p: RAdam(p, codec="fp32", weight_decay=0.1, **EAGER),
    "muon": lambda p: Muon(p, seed=3),
    "muon_8bit": lambda p: Muon(p, seed=3, codec="8bit", neuron_beta2=0.9),
    "muon_whole": lambda p: Muon(p, block_size=None, neuron_beta2=0.9, **EAGER),
    "lamb_clip": lambda p: LAMB(p, codec="fp32", max_grad_norm=1.0, trust_clip=True, **EAGER),
    "lamb_whole": lambda p: LAMB(p, block_size=None, **EAGER),
}


def initial(shapes: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {n: torch.randn(s, generator=generator).mul_(0.1).to(dtype) for n, s in shapes.items()}


def gradient(name: str, value: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step * 1009 + len(name))
    size = torch.exp2(torch.randn(value.shape, generator=generator) * 3)
    return (torch.randn(value.shape, generator=generator) * size).to(value.dtype)


def mesh_of_world() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


class Run:
    """Parameters, whole or on a mesh, with the optimizer ``kind``.

    Args:
        kind: a key of `OPTIMIZERS`.
        mesh: where parameters are sharded; ``None`` for whole ones.
        placements: on the mesh.
        shapes: of the parameters, by name.
        dtype: of the parameters.
    """

    def __init__(
        self,
        kind: str,
        mesh: DeviceMesh | None = None,
        placements: Any = ROWS,
        shapes: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.mesh, self.placements = mesh, placements
        values = initial(shapes or SHAPES, dtype)
        self.params = {name: nn.Parameter(self._place(v)) for name, v in values.items()}
        self.optimizer = OPTIMIZERS[kind](self.params.items())
        self.done = 0

    def _place(self, value: Tensor) -> Tensor:
        if self.mesh is None:
            return value.clone()
        fits = [p if value.dim() > getattr(p, "dim", 0) else Shard(0) for p in self.placements]
        return distribute_tensor(value, self.mesh, fits, src_data_rank=None)

    def steps(self, count: int) -> "Run":
        for _ in range(count):
            self.done += 1
            for name, param in self.params.items():
                whole = gradient(name, torch.empty(param.shape, dtype=param.dtype), self.done)
                param.grad = self._place(whole)
            self.optimizer.step()
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Everything a run leaves, whole: parameters and state."""
        found = dict(self.params)
        for name, param in self.params.items():
            state = self.optimizer.state[param]
            found.update({f"{name}/{key}": value for key, value in state.items()})
        return {key: whole(value.detach()) for key, value in found.items()}


def whole(value: Tensor) -> Tensor:
    """Put a DTensor together; gloo cannot gather 16-bit integers, so not by ``full_tensor``."""
    if not isinstance(value, DTensor):
        return value
    shape, offset = compute_local_shape_and_global_offset(
        value.shape, value.device_mesh, value.placements
    )
    box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (box, value.to_local().detach()))
    result = torch.empty(value.shape, dtype=value.dtype)
    for where, local in found:
        result[where] = local
    return result


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], skip: str = "\0") -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if skip in name:
            continue
        left = found[name]
        assert left.dtype == value.dtype, name
        assert left.shape == value.shape, (name, left.shape, value.shape)
        differ = int((left != value).sum())
        assert not differ, f"{name}: {differ} of {value.numel()} differ"
