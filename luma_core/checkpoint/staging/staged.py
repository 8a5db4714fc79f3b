"""What an asynchronous save reads: state under copy-on-write, and copies of the rest."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from luma_core.checkpoint.format.compression import CHUNK_BYTES
from luma_core.checkpoint.format.manifest import Manifest
from luma_core.checkpoint.format.plan import Plan
from luma_core.checkpoint.format.shard import PlannedTensor
from luma_core.checkpoint.staging import pool
from luma_core.checkpoint.staging.copy_on_write import (
    MAX_THREADS,
    CopyOnWriteGuard,
    GuardedTensor,
    extent,
)
from luma_core.checkpoint.staging.pool import StagingPool, kind_of
from luma_core.checkpoint.staging.tensors import (
    DeviceTensor,
    HostTensor,
    Way,
    bytes_of,
    has_plain_bytes,
)
from luma_core.optim.base import CompressedOptimizer
from luma_core.sharding import local_tensor

SMALL_BYTES = 64 << 10
"""Copying so much of the CPU's memory takes no longer than looking after it."""

_PARALLEL_BYTES = 1 << 20


class Staging:
    """How one asynchronous save gets at what it saves.

    State of our optimizers is under copy-on-write (`CopyOnWriteGuard`): it is written as it is, and
    what a step is about to change before that is copied. All else is copied at once, since others
    may change it any time: weights, the caller's own tensors, and state that a CUDA graph may step,
    which passes by Python. So are small tensors. State on disk whose file system can clone files is
    read from a clone.

    Args:
        owner: what is saved.
        again: whether the save may read tensors more than once.
    """

    def __init__(self, owner: object, *, again: bool = False) -> None:
        self._ways = _ways(owner)
        self._snapshot = _snapshot(owner)
        self._again = again
        self._pool = StagingPool(owner)
        self._guard = CopyOnWriteGuard()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._on_devices: list[DeviceTensor] = []
        self._from_back: list[GuardedTensor] = []
        # A save that was given up before it ran must not keep steps waiting.
        weakref.finalize(self, _abandon, self._guard).atexit = False

    def staged(self, plan: Plan) -> Plan:
        """Return ``plan`` with tensors that later training steps do not change."""
        with _Copier() as copier:
            shards = {
                kind: [
                    [self._staged(t, copier, guarded=kind == "optimizer") for t in shard]
                    for shard in some
                ]
                for kind, some in plan.shards.items()
            }
        self._pool.trim()
        self._guard.begin([*self._on_devices, *reversed(self._from_back)])
        return replace(plan, shards=shards)

    def release(self) -> None:
        """Keep the copies' memory for the next save; nothing must be read from here on."""
        self._guard.end()
        self._pool.release()

    def _staged(self, planned: PlannedTensor, copier: _Copier, *, guarded: bool) -> PlannedTensor:
        tensor = planned.checked().detach()
        way = self._ways.get(tensor.data_ptr()) if guarded and tensor.numel() else None
        if way is Way.WAIT and self._snapshot is not None:
            frozen = self._snapshot(tensor)
            if frozen is not None:
                return replace(planned, load=lambda: frozen)
        if way is not None and self._can_be_guarded(tensor, way):
            found = self._guard_tensor(planned.name, tensor, way)
            return replace(planned, pieces=found.pieces)
        copy = self._pool.new(kind_of(tensor))
        copier.copy(tensor, copy)
        return replace(planned, load=lambda: copy)

    def _can_be_guarded(self, tensor: Tensor, way: Way) -> bool:
        small = tensor.nbytes <= SMALL_BYTES and way is not Way.WAIT and not tensor.is_cuda
        return not small and has_plain_bytes(tensor) and self._guard.takes(*extent(tensor))

    def _guard_tensor(self, name: str, tensor: Tensor, way: Way) -> HostTensor | DeviceTensor:
        found: HostTensor | DeviceTensor
        if tensor.is_cuda:
            stream = beside_current(self._streams, tensor.device)
            found = DeviceTensor(self._guard, name, tensor, stream, self._pool)
            self._on_devices.append(found)
        else:
            found = HostTensor(
                self._guard,
                name,
                tensor,
                way,
                self._pool,
                piece_bytes=CHUNK_BYTES,
                again=self._again,
            )
            self._from_back.append(found)
        self._guard.add(found)
        if way is not Way.WAIT:
            self._pool.expect(kind_of(tensor))
        return found


def _abandon(guard: CopyOnWriteGuard) -> None:
    guard.abandoned = True


def _ways(owner: object) -> Mapping[int, Way]:
    """Return the way for each tensor of an optimizer's state that can be guarded, by address."""
    found: dict[int, Way] = {}
    if not isinstance(owner, CompressedOptimizer):
        return found
    for _, param, group in owner.parameters_by_name():
        for value in owner.state.get(param, {}).values():
            local = local_tensor(value)
            way = _way(owner, param, group, local)
            if way is not None:
                found[local.data_ptr()] = way
    return found


def _way(
    owner: CompressedOptimizer, param: Tensor, group: Mapping[str, Any], stored: Tensor
) -> Way | None:
    if stored.is_cuda:
        return None if group["capturable"] else Way.BACKGROUND
    if stored.device.type != "cpu":
        return None
    if owner.offloader is None or not owner.offloader.takes(param):
        return Way.BACKGROUND
    return Way.WAIT if owner.offloader.mode == "disk" else Way.BACKGROUND


def _snapshot(owner: object) -> Callable[[Tensor], Tensor | None] | None:
    return owner.state_snapshot() if isinstance(owner, CompressedOptimizer) else None


def provide(owner: object, plan: Plan) -> None:
    """Get the memory that copies of ``plan`` may need, on a thread that nobody waits for."""
    ways = _ways(owner)
    tensors = (t.checked() for some in plan.shards.values() for shard in some for t in shard)
    kinds = [kind_of(t) for t in tensors if ways.get(t.data_ptr()) is not Way.WAIT]
    pool.provide(owner, kinds)


def beside_current(
    streams: dict[torch.device, torch.cuda.Stream], device: torch.device
) -> torch.cuda.Stream:
    """Return a device's stream for copies; it begins after the work that is queued by then."""
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
        streams[device].wait_stream(torch.cuda.current_stream(device))
    return streams[device]


class _Copier:
    """Copies tensors to the CPU, several at once; all are copied when its ``with`` block ends."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS))
        self._begun: list[Future[None]] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._executor.shutdown()
        for stream in self._streams.values():
            stream.synchronize()
        for copied in self._begun:
            copied.result()

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy ``source`` to ``target``, a contiguous tensor of its dtype and shape."""
        if source.is_cuda:
            with torch.cuda.stream(beside_current(self._streams, source.device)):
                target.copy_(source, non_blocking=True)
        elif source.nbytes < _PARALLEL_BYTES or not has_plain_bytes(source):
            target.copy_(source)
        else:
            # Twice as fast as torch's own, which reads memory that it is about to overwrite.
            self._begun.append(self._executor.submit(np.copyto, bytes_of(target), bytes_of(source)))


def released(run: Callable[[], Manifest], staging: Staging) -> Manifest:
    """Do what is left of a save and release what it used, whether it succeeds or not."""
    try:
        return run()
    finally:
        staging.release()
