"""Readers of our own format as functions of bytes: they return, or raise what is a defect.

Checksums stop most damage before it reaches what lies behind them. So each target also mends them,
as somebody could who means harm.
"""

import contextlib
import hashlib
import json
import math
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luma_core import LUMA, checkpoint
from luma_core.checkpoint.format.compression import Chunk
from luma_core.checkpoint.format.manifest import canonical_json
from luma_core.checkpoint.format.shard import header_bytes
from luma_core.errors import LumaError


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        run: reads bytes; whatever but an error of ours comes out of it is a defect.
        seeds: valid input to begin with.
        json: whether input is JSON, to be changed as such.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    json: bool


def sealed(body: Any) -> bytes:
    """Return a manifest file of ``body`` with the right checksum."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json({"checksum": f"sha256:{digest}", "manifest": body})


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 8))


@cache
def saved() -> Path:
    """Return the folder of a checkpoint with state, weights and extra values."""
    # Kept for the process: what refers to it is at module level.
    folder = Path(tempfile.mkdtemp(prefix="luma-fuzz-"))
    model = _model()
    optimizer = LUMA(model.named_parameters(), seed=1, min_compress_elements=8)
    model(torch.randn(4, 24)).square().sum().backward()
    optimizer.step()
    extra = {"rng": torch.arange(40), "epoch": [1, {"best": 0.5}], "seen": (1, {2: math.inf})}
    checkpoint.save(folder / "c", optimizer=optimizer, model=model, extra=extra)
    return folder / "c"


@cache
def saved_manifest() -> checkpoint.Manifest:
    """Return the manifest of `saved`."""
    return checkpoint.format.parse_manifest((saved() / "luma.json").read_bytes())


def read_all(folder: Path) -> None:
    """Read everything in a checkpoint, in each of the ways there are."""
    opened = checkpoint.open(folder)
    for name in opened.parameter_names():
        for value in opened.parameter_state(name).fields.values():
            value.sum()
    opened.extra()
    for entry in opened.model_tensors():
        opened.read_tensor(entry)
    checkpoint.verify(folder)
    model = _model()
    checkpoint.load(folder, optimizer=LUMA(model.named_parameters()), model=model)


def run_manifest(data: bytes) -> None:
    """Parse ``data`` as it is, and as a manifest with a checksum that fits."""
    with contextlib.suppress(LumaError):
        checkpoint.format.parse_manifest(data)
    try:
        body = json.loads(data)["manifest"]
        content = sealed(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    try:
        manifest = checkpoint.format.parse_manifest(content)
    except LumaError:
        return
    if manifest.to_bytes() != content:
        raise AssertionError("a manifest that was accepted is written in another way")


def manifest_seeds() -> list[bytes]:
    """Return a real manifest, and one without checksum."""
    data = (saved() / "luma.json").read_bytes()
    return [data, json.dumps({"manifest": json.loads(data)["manifest"]}).encode()]


def run_shard(data: bytes) -> None:
    """Read a checkpoint whose shard is ``data``, and one with ``data`` as a chunk of its shard.

    The first byte chooses the shard and the tensor.
    """
    if not data:
        return
    original, manifest = saved(), saved_manifest()
    files = [entry for entry in manifest.files if entry.kind != "index"]
    file = files[data[0] % len(files)]
    tensors = [entry for entry in manifest.tensors if entry.file == file.name]
    chosen = tensors[data[0] // len(files) % len(tensors)]
    with tempfile.TemporaryDirectory(prefix="luma-fuzz-", dir=original.parent) as place:
        folder = Path(place)
        for entry in manifest.files:
            (folder / entry.name).symlink_to(original / entry.name)
        (folder / file.name).unlink()
        (folder / file.name).write_bytes(data[1:])
        (folder / "luma.json").write_bytes((original / "luma.json").read_bytes())
        _survives(folder)
        if chosen.chunks:
            _rewrite(folder, original, manifest, file.name, chosen.name, data[1:])
            _survives(folder)


def _survives(folder: Path) -> None:
    with contextlib.suppress(LumaError):
        read_all(folder)


def _rewrite(
    folder: Path,
    original: Path,
    manifest: checkpoint.Manifest,
    file_name: str,
    tensor_name: str,
    data: bytes,
) -> None:
    """Write the shard anew with ``data`` as a tensor's first chunk, all sizes and sums right."""
    shard = (original / file_name).read_bytes()
    old_entries = [entry for entry in manifest.tensors if entry.file == file_name]
    start = 8 + int.from_bytes(shard[:8], "little")
    body, entries, offset = [], [], 0
    for entry in old_entries:
        stored = shard[start + entry.offset :][: entry.stored_bytes]
        chunks = entry.chunks
        if entry.name == tensor_name:
            stored = data + stored[chunks[0].stored_bytes :]
            chunks = (Chunk(len(data), zlib.crc32(data), False), *chunks[1:])
        entries.append(replace(entry, chunks=chunks, offset=offset))
        body.append(stored)
        offset += len(stored)
    content = header_bytes(entries, manifest.generation) + b"".join(body)
    (folder / file_name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    files = tuple(
        replace(entry, bytes=len(content), sha256=digest) if entry.name == file_name else entry
        for entry in manifest.files
    )
    tensors = tuple(entries.pop(0) if e.file == file_name else e for e in manifest.tensors)
    changed = replace(manifest, files=files, tensors=tensors)
    (folder / "luma.json").write_bytes(changed.to_bytes())


def shard_seeds() -> list[bytes]:
    """Return real shards, and the stored bytes of their first chunks."""
    folder, manifest = saved(), saved_manifest()
    files = [entry for entry in manifest.files if entry.kind != "index"]
    seeds = []
    for index, file in enumerate(files):
        shard = (folder / file.name).read_bytes()
        seeds.append(bytes([index]) + shard)
        start = 8 + int.from_bytes(shard[:8], "little")
        tensors = [entry for entry in manifest.tensors if entry.file == file.name]
        for place, entry in enumerate(tensors):
            first = entry.chunks[0].stored_bytes if entry.chunks else 0
            chosen = index + place * len(files)
            if chosen < 256:
                seeds.append(bytes([chosen]) + shard[start + entry.offset :][:first])
    return seeds


TARGETS = {
    "manifest": Target(run_manifest, manifest_seeds, json=True),
    "shard": Target(run_shard, shard_seeds, json=False),
}
