"""Checkpoints that the service is measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from luma_core import LUMA, backends, checkpoint
from luma_core.checkpoint.format.manifest import FileEntry, Manifest
from luma_core.checkpoint.storage.local import LocalStore
from luma_core.checkpoint.storage.open import open_store

SIDE = 4096
"""Of the matrices of a large checkpoint."""

BYTES_PER_PARAMETER = 4
RUNS = 20
STAMP_BYTES = 16
_SEED = 5


def save_large(folder: Path, parameters: float) -> Manifest:
    """Save uncompressed LUMA state of about so many parameters, and return its manifest.

    Moments are products of normal and log-normal values, others in each matrix, so that codes use
    their whole range.
    """
    side = SIDE if parameters >= SIDE**2 else 512
    count = max(1, round(parameters / side**2))
    torch.manual_seed(_SEED)
    base = torch.randn(side, side) * torch.randn(side, side).exp()
    params = [
        (f"layers.{i}.weight", torch.nn.Parameter(torch.zeros(side, side, dtype=torch.bfloat16)))
        for i in range(count)
    ]
    optimizer = LUMA(params, seed=0)
    optimizer.init_state()
    for i, (name, param) in enumerate(params):
        moment = base * 1.37**-i
        for kind, values in (("exp_avg", moment), ("exp_avg_sq", moment.square())):
            fields = backends.encode(optimizer.parameter_state(name).codecs[kind], values)
            for field, tensor in fields.items():
                optimizer.state[param][f"{kind}.{field}"].copy_(tensor)
    return checkpoint.save(folder, optimizer=optimizer, compression="none")


def save_wide(folder: Path, layers: int) -> Manifest:
    """Save a checkpoint with the parameters of a transformer's layers, all of them small."""
    torch.manual_seed(_SEED)
    shapes = {
        "attn.qkv.weight": (96, 32),
        "attn.qkv.bias": (96,),
        "attn.out.weight": (32, 32),
        "attn.out.bias": (32,),
        "mlp.up.weight": (128, 32),
        "mlp.up.bias": (128,),
        "mlp.down.weight": (32, 128),
        "mlp.down.bias": (32,),
        "norm1.weight": (32,),
        "norm1.bias": (32,),
        "norm2.weight": (32,),
        "norm2.bias": (32,),
    }
    params = [
        (f"h.{layer}.{name}", torch.nn.Parameter(torch.randn(shape)))
        for layer in range(layers)
        for name, shape in shapes.items()
    ]
    optimizer = LUMA(params, seed=0)
    for _, param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    return checkpoint.save(folder, optimizer=optimizer)


def save_many(root: str, template: Path, count: int) -> None:
    """Put ``count`` copies of a small checkpoint below a root, each with a manifest of its own."""
    manifest = checkpoint.open(template).manifest
    files = {file.name: (template / file.name).read_bytes() for file in manifest.files}
    per_run = -(-count // RUNS)

    def put(index: int) -> None:
        run, step = divmod(index, per_run)
        store = open_store(f"{root}/run-{run}/{step * 100}")
        own = replace(manifest, extra={"index": index})
        for name, body in {**files, "luma.json": own.to_bytes()}.items():
            if isinstance(store, LocalStore):
                # Without the syncs of a store, which are not what is measured.
                store.path.mkdir(parents=True, exist_ok=True)
                (store.path / name).write_bytes(body)
            else:
                with store.write(name) as out:
                    out.write(body)
                    out.commit()

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(put, range(count)):
            pass


class Stamped:
    """A checkpoint's files with other first bytes, so that a server knows none of them.

    Args:
        folder: of the checkpoint.
        manifest: of it.
        number: makes the bytes.
    """

    def __init__(self, folder: Path, manifest: Manifest, number: int) -> None:
        self._folder = folder
        self._stamp = hashlib.sha256(str(number).encode()).digest()[:STAMP_BYTES]
        entries = tuple(replace(file, sha256=self._sha256(file)) for file in manifest.files)
        self.manifest = replace(manifest, files=entries)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Read from ``start`` on, and return how many bytes there were."""
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(start)
            count = 0
            while count < len(out) and (got := file.readinto(out[count:])):
                count += got
        if start < STAMP_BYTES:
            end = min(STAMP_BYTES - start, count)
            out[:end] = self._stamp[start : start + end]
        return count

    def _sha256(self, file: FileEntry) -> str:
        found = hashlib.sha256()
        for piece in self._pieces(file):
            found.update(piece)
        return found.hexdigest()

    def _pieces(self, file: FileEntry) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(1 << 20))
        start = 0
        while count := self.read_into(file.name, start, buffer):
            yield buffer[:count]
            start += count


def make_bucket(name: str) -> None:
    """Make a bucket on the S3 server of this process's environment."""
    import fsspec

    fsspec.filesystem("s3").mkdir(name)
