"""What is measured: one function a row of the table, each run in a process of its own."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.checkpoint.conversion import copy, from_adamw, to_adamw
from benchmarks.checkpoint.measure import (
    Job,
    Result,
    adamw_state,
    folder_bytes,
    luma_optimizer,
    measured,
    synced,
)
from luma_core.direct import opened_directly, transfer_memory

PIECE_BYTES = 8 << 20


def plain_write(job: Job) -> Result:
    """Write the bytes of LUMA's state and sync them."""
    optimizer = luma_optimizer(job, with_state=True)

    def write() -> None:
        with (job.folder / "plain").open("wb", buffering=0) as file:
            for state in optimizer.parameter_states():
                for tensor in state.fields.values():
                    data = memoryview(tensor.view(-1).view(torch.uint8).numpy())
                    for start in range(0, len(data), PIECE_BYTES):
                        file.write(data[start : start + PIECE_BYTES])
            os.fsync(file.fileno())

    return measured(write, job)


def direct_write(job: Job) -> Result:
    """Write those bytes past the page cache, each piece copied to memory that allows that."""
    optimizer = luma_optimizer(job, with_state=True)

    def write() -> None:
        piece = transfer_memory(PIECE_BYTES)
        path = job.folder / "direct"
        path.touch()
        file = opened_directly(path, "r+b")
        assert file is not None
        with file:
            for state in optimizer.parameter_states():
                for tensor in state.fields.values():
                    data = tensor.view(-1).view(torch.uint8).numpy()
                    for start in range(0, len(data), PIECE_BYTES):
                        part = data[start : start + PIECE_BYTES]
                        piece[: len(part)] = part
                        if file.write(piece.data[: len(part)]) != len(part):
                            raise OSError("the disk took less than it was given")
            os.fsync(file.fileno())

    return measured(write, job)


def direct_read(job: Job) -> Result:
    """Read those bytes past the page cache, piece after piece into the same memory."""

    def read() -> None:
        piece = transfer_memory(PIECE_BYTES)
        file = opened_directly(job.folder / "direct", "rb")
        assert file is not None
        with file:
            while file.readinto(piece.data):
                pass

    return measured(read, job)


def plain_read_kept(job: Job) -> Result:
    """Read those bytes into new memory that holds all of them, as a load must."""
    size = folder_bytes(job.folder)

    def read() -> None:
        memory = torch.empty(size, dtype=torch.uint8).numpy().data
        done = 0
        with (job.folder / "plain").open("rb", buffering=0) as file:
            while count := file.readinto(memory[done : done + PIECE_BYTES]):
                done += count

    return measured(read, job, state_bytes=size)


def plain_read(job: Job) -> Result:
    """Read those bytes, piece after piece into the same memory."""

    def read() -> None:
        buffer = bytearray(PIECE_BYTES)
        with (job.folder / "plain").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return measured(read, job)


def luma_save(job: Job, *, compression: Any = "none", kind: str = "LUMA") -> Result:
    """Save one of our optimizers' state and wait."""
    from luma_core import checkpoint

    optimizer = luma_optimizer(job, with_state=True, kind=kind)

    def save() -> None:
        checkpoint.save(job.folder, optimizer=optimizer, compression=compression)

    return measured(save, job)


def luma_async(job: Job, *, earlier: int = 0, prepare: bool = False) -> Result:
    """Save with LUMA behind the caller, after some earlier saves of that kind or prepared.

    A step follows at once, as far as the save is concerned: all state is about to change.
    """
    from luma_core import checkpoint

    optimizer = luma_optimizer(job, with_state=True)
    state = [value for entry in optimizer.state.values() for value in entry.values()]

    def save() -> tuple[float, float]:
        handle: Any = checkpoint.save(
            job.folder, optimizer=optimizer, compression="none", wait=False, overwrite=True
        )
        held = time.perf_counter()
        checkpoint.before_change(state)
        stepped = time.perf_counter()
        handle.result()
        return held, stepped

    for _ in range(earlier):
        save()
    if prepare:
        checkpoint.prepare(optimizer=optimizer)
        for thread in threading.enumerate():
            if thread.name == "luma-provide":
                thread.join()
    return measured(save, job)


def luma_load(job: Job) -> Result:
    """Load with LUMA, checksums verified."""
    from luma_core import checkpoint

    optimizer = luma_optimizer(job, with_state=False)
    state_bytes = checkpoint.open(job.folder).manifest.summary.state_bytes

    def load() -> None:
        checkpoint.load(job.folder, optimizer=optimizer)

    return measured(load, job, state_bytes=state_bytes)


def luma_verify(job: Job) -> Result:
    """Check every byte with LUMA."""
    from luma_core import checkpoint

    def verify() -> None:
        checkpoint.verify(job.folder)

    return measured(verify, job)


def luma_stats(job: Job) -> Result:
    """Compute the statistics of all parameters."""
    from luma_core import checkpoint, stats

    def compute() -> None:
        with checkpoint.open(job.folder) as saved:
            stats.compute(saved)

    return measured(compute, job)


def torch_save(job: Job) -> Result:
    """Save AdamW's state by torch.save."""
    state = adamw_state(job)

    def save() -> None:
        torch.save(state, job.folder / "optimizer.pt")
        synced(job.folder)

    return measured(save, job)


def torch_load(job: Job) -> Result:
    """Load AdamW's state by torch.load."""
    return measured(
        lambda: torch.load(job.folder / "optimizer.pt", weights_only=True) and None,
        job,
        state_bytes=folder_bytes(job.folder),
    )


def safetensors_save(job: Job) -> Result:
    """Save AdamW's state by safetensors."""
    from safetensors.torch import save_file

    state = adamw_state(job)

    def save() -> None:
        save_file(state, job.folder / "optimizer.safetensors")
        synced(job.folder)

    return measured(save, job)


def safetensors_load(job: Job) -> Result:
    """Load AdamW's state by safetensors; cloned, because it only maps the file."""
    from safetensors.torch import load_file

    def load() -> None:
        loaded = load_file(job.folder / "optimizer.safetensors")
        for name in list(loaded):
            loaded[name] = loaded[name].clone()

    return measured(load, job, state_bytes=folder_bytes(job.folder))


def dcp_save(job: Job) -> Result:
    """Save AdamW's state by DCP."""
    from torch.distributed.checkpoint import state_dict_saver

    state = adamw_state(job)

    def save() -> None:
        state_dict_saver.save(state, checkpoint_id=job.folder, no_dist=True)
        synced(job.folder)

    return measured(save, job)


def dcp_async(job: Job) -> Result:
    """Save AdamW's state by DCP behind the caller."""
    from torch import distributed
    from torch.distributed.checkpoint import state_dict_saver

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as meeting:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}/ranks", rank=0, world_size=1
        )
        state = adamw_state(job)

        def save() -> tuple[float]:
            saved: Any = state_dict_saver.async_save(state, checkpoint_id=job.folder)
            held = time.perf_counter()
            saved.result()
            synced(job.folder)
            return (held,)

        result = measured(save, job)
        distributed.destroy_process_group()
    return result


def dcp_load(job: Job) -> Result:
    """Load AdamW's state by DCP into tensors that are there."""
    from torch.distributed.checkpoint import state_dict_loader

    state = adamw_state(job)

    def load() -> None:
        state_dict_loader.load(state, checkpoint_id=job.folder, no_dist=True)

    return measured(load, job)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: what it says.
        action: what is measured.
        place: name of the folder; a reading row follows the one that wrote there.
        held: bytes of memory per parameter that its process holds at most.
        new: bytes per parameter of memory that it begins to use meanwhile, page cache included.
        options: of the action.
    """

    name: str
    action: Callable[..., Result]
    place: str
    held: int
    new: int
    options: dict[str, Any]


_ZSTD: dict[str, Any] = {"compression": "zstd"}
_TURBO: dict[str, Any] = {"compression": "zstd", "kind": "TurboAdam"}

ROWS = (
    Row("plain write, fsync", plain_write, "plain", 4, 4, {}),
    Row("plain read", plain_read, "plain", 0, 4, {}),
    Row("plain read, kept", plain_read_kept, "plain", 4, 8, {}),
    Row("direct write", direct_write, "direct", 4, 4, {}),
    Row("direct read", direct_read, "direct", 0, 4, {}),
    Row("LUMA save, none", luma_save, "luma", 4, 4, {}),
    Row("LUMA load", luma_load, "luma", 4, 8, {}),
    Row("LUMA verify", luma_verify, "luma", 0, 4, {}),
    Row("LUMA stats", luma_stats, "luma", 0, 4, {}),
    Row("LUMA save, zstd", luma_save, "zstd", 4, 4, _ZSTD),
    Row("LUMA load, zstd", luma_load, "zstd", 4, 8, {}),
    Row("LUMA save, behind", luma_async, "behind", 8, 4, {"prepare": True}),
    Row("LUMA behind, again", luma_async, "again", 8, 4, {"earlier": 1}),
    Row("LUMA behind, bare", luma_async, "bare", 8, 8, {}),
    Row("TurboAdam save, zstd", luma_save, "turbo", 1, 1, _TURBO),
    Row("LUMA to AdamW", to_adamw, "convert", 4, 12, {}),
    Row("copy of AdamW", copy, "convert", 0, 16, {}),
    Row("AdamW to LUMA", from_adamw, "convert", 0, 12, {}),
    Row("torch.save AdamW", torch_save, "torch", 8, 8, {}),
    Row("torch.load AdamW", torch_load, "torch", 8, 16, {}),
    Row("safetensors save AdamW", safetensors_save, "safetensors", 16, 16, {}),
    Row("safetensors load AdamW", safetensors_load, "safetensors", 8, 16, {}),
    Row("DCP save AdamW", dcp_save, "dcp", 8, 8, {}),
    Row("DCP load AdamW", dcp_load, "dcp", 8, 8, {}),
    Row("DCP async_save AdamW", dcp_async, "dcp-async", 16, 16, {}),
)
