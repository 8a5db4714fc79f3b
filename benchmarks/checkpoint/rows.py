"""What is measured: one function a row of the table, each run in a process of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.checkpoint.measure import (
    Result,
    adamw_state,
    folder_bytes,
    luma_optimizer,
    measured,
    synced,
)

PIECE_BYTES = 8 << 20


def plain_write(folder: Path, count: int) -> Result:
    """Write the bytes of LUMA's state and sync them."""
    optimizer = luma_optimizer(count, with_state=True)

    def write() -> None:
        with (folder / "plain").open("wb", buffering=0) as file:
            for state in optimizer.parameter_states():
                for tensor in state.fields.values():
                    data = memoryview(tensor.view(-1).view(torch.uint8).numpy())
                    for start in range(0, len(data), PIECE_BYTES):
                        file.write(data[start : start + PIECE_BYTES])
            os.fsync(file.fileno())

    return measured(write, folder)


def plain_read_kept(folder: Path, _count: int) -> Result:
    """Read those bytes into new memory that holds all of them, as a load must."""
    size = folder_bytes(folder)

    def read() -> None:
        memory = torch.empty(size, dtype=torch.uint8).numpy().data
        done = 0
        with (folder / "plain").open("rb", buffering=0) as file:
            while count := file.readinto(memory[done : done + PIECE_BYTES]):
                done += count

    return measured(read, folder, state_bytes=size)


def plain_read(folder: Path, _count: int) -> Result:
    """Read those bytes, piece after piece into the same memory."""

    def read() -> None:
        buffer = bytearray(PIECE_BYTES)
        with (folder / "plain").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return measured(read, folder)


def luma_save(folder: Path, count: int, *, compression: Any = "none") -> Result:
    """Save with LUMA and wait."""
    from luma_core import checkpoint

    optimizer = luma_optimizer(count, with_state=True)

    def save() -> None:
        checkpoint.save(folder, optimizer=optimizer, compression=compression)

    return measured(save, folder)


def luma_async(folder: Path, count: int, *, earlier: int = 0) -> Result:
    """Save with LUMA behind the caller, after some earlier saves of that kind."""
    from luma_core import checkpoint

    optimizer = luma_optimizer(count, with_state=True)

    def save() -> float:
        handle: Any = checkpoint.save(
            folder, optimizer=optimizer, compression="none", wait=False, overwrite=True
        )
        held = time.perf_counter()
        handle.result()
        return held

    for _ in range(earlier):
        save()
    return measured(save, folder)


def luma_load(folder: Path, count: int) -> Result:
    """Load with LUMA, checksums verified."""
    from luma_core import checkpoint

    optimizer = luma_optimizer(count, with_state=False)
    state_bytes = checkpoint.open(folder).manifest.summary.state_bytes

    def load() -> None:
        checkpoint.load(folder, optimizer=optimizer)

    return measured(load, folder, state_bytes=state_bytes)


def luma_verify(folder: Path, _count: int) -> Result:
    """Check every byte with LUMA."""
    from luma_core import checkpoint

    def verify() -> None:
        checkpoint.verify(folder)

    return measured(verify, folder)


def torch_save(folder: Path, count: int) -> Result:
    """Save AdamW's state by torch.save."""
    state = adamw_state(count)

    def save() -> None:
        torch.save(state, folder / "optimizer.pt")
        synced(folder)

    return measured(save, folder)


def torch_load(folder: Path, _count: int) -> Result:
    """Load AdamW's state by torch.load."""
    return measured(
        lambda: torch.load(folder / "optimizer.pt", weights_only=True) and None,
        folder,
        state_bytes=folder_bytes(folder),
    )


def safetensors_save(folder: Path, count: int) -> Result:
    """Save AdamW's state by safetensors."""
    from safetensors.torch import save_file

    state = adamw_state(count)

    def save() -> None:
        save_file(state, folder / "optimizer.safetensors")
        synced(folder)

    return measured(save, folder)


def safetensors_load(folder: Path, _count: int) -> Result:
    """Load AdamW's state by safetensors; cloned, because it only maps the file."""
    from safetensors.torch import load_file

    def load() -> None:
        loaded = load_file(folder / "optimizer.safetensors")
        for name in list(loaded):
            loaded[name] = loaded[name].clone()

    return measured(load, folder, state_bytes=folder_bytes(folder))


def dcp_save(folder: Path, count: int) -> Result:
    """Save AdamW's state by DCP."""
    from torch.distributed.checkpoint import state_dict_saver

    state = adamw_state(count)

    def save() -> None:
        state_dict_saver.save(state, checkpoint_id=folder, no_dist=True)
        synced(folder)

    return measured(save, folder)


def dcp_async(folder: Path, count: int) -> Result:
    """Save AdamW's state by DCP behind the caller."""
    from torch import distributed
    from torch.distributed.checkpoint import state_dict_saver

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as meeting:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}/ranks", rank=0, world_size=1
        )
        state = adamw_state(count)

        def save() -> float:
            saved: Any = state_dict_saver.async_save(state, checkpoint_id=folder)
            held = time.perf_counter()
            saved.result()
            synced(folder)
            return held

        result = measured(save, folder)
        distributed.destroy_process_group()
    return result


def dcp_load(folder: Path, count: int) -> Result:
    """Load AdamW's state by DCP into tensors that are there."""
    from torch.distributed.checkpoint import state_dict_loader

    state = adamw_state(count)

    def load() -> None:
        state_dict_loader.load(state, checkpoint_id=folder, no_dist=True)

    return measured(load, folder)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: what it says.
        action: what is measured.
        place: name of the folder; a reading row follows the one that wrote there.
        options: of the action.
    """

    name: str
    action: Callable[..., Result]
    place: str
    options: dict[str, Any]


ROWS = (
    Row("plain write, fsync", plain_write, "plain", {}),
    Row("plain read", plain_read, "plain", {}),
    Row("plain read, kept", plain_read_kept, "plain", {}),
    Row("LUMA save, none", luma_save, "luma", {}),
    Row("LUMA load", luma_load, "luma", {}),
    Row("LUMA verify", luma_verify, "luma", {}),
    Row("LUMA save, zstd", luma_save, "zstd", {"compression": "zstd"}),
    Row("LUMA load, zstd", luma_load, "zstd", {}),
    Row("LUMA save, behind", luma_async, "behind", {}),
    Row("LUMA behind, again", luma_async, "again", {"earlier": 1}),
    Row("torch.save AdamW", torch_save, "torch", {}),
    Row("torch.load AdamW", torch_load, "torch", {}),
    Row("safetensors save AdamW", safetensors_save, "safetensors", {}),
    Row("safetensors load AdamW", safetensors_load, "safetensors", {}),
    Row("DCP save AdamW", dcp_save, "dcp", {}),
    Row("DCP load AdamW", dcp_load, "dcp", {}),
    Row("DCP async_save AdamW", dcp_async, "dcp-async", {}),
)
