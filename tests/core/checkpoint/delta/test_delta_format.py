"""Format version 2, byte for byte and as documented; version 1 is what it was."""

import json
import re
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from luma_core import checkpoint
from luma_core.checkpoint import Manifest, Summary
from luma_core.checkpoint.format import (
    MAX_CHAIN,
    BaseEntry,
    Chunk,
    FileEntry,
    ParameterEntry,
    TensorEntry,
    compression,
    parse_manifest,
)
from luma_core.checkpoint.write import save_run as writer
from luma_core.optim import LUMA, TurboAdam

DOCUMENT = (Path(__file__).parents[4] / "docs" / "checkpoint-format.md").read_text()
PROGRAM = re.search(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
SHARD = "optimizer-00001-of-00001.safetensors"
OPTIMIZERS = {
    "luma": lambda params: LUMA(params, seed=1, min_compress_elements=9),
    "turbo": lambda params: TurboAdam(params, seed=1, min_m_compress_elements=9),
}


def manifest():
    chunks = (Chunk(12, 7, False),)
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        software="luma-state 0.1.0",
        algorithm="luma",
        named=True,
        compression="zstd",
        chunk_bytes=64,
        groups=({"lr": 1e-8, "betas": [0.9, 0.999]},),
        parameters=(
            ParameterEntry(
                *("p", (2, 2), "float32", 0, 3, -5, 0),
                {"exp_avg": {"name": "fp32", "block_size": 128}},
            ),
        ),
        tensors=(TensorEntry("p/exp_avg.value", SHARD, "F32", (2, 2), 0, chunks, (9,)),),
        files=(FileEntry(SHARD, 160, "0" * 64, "optimizer"),),
        summary=Summary(1, 4, 16, 160, 3),
        generation=1,
        extra=None,
        version=2,
        base=BaseEntry("00000010", "a" * 64, 1),
    )


def test_a_manifest_of_version_2_keeps_its_bytes():
    data = manifest().to_bytes()
    body = json.loads(data)["manifest"]
    assert body["version"] == 2
    assert body["base"] == {"chain": 1, "digest": "a" * 64, "folder": "00000010"}
    assert body["tensors"][0]["deltas"] == [9]
    assert manifest().digest == "e4b6e3148b1e8a2124e292e290de4c6431e987f8d3d6584394de0a7acff2958f"
    assert parse_manifest(data) == manifest()


def test_a_manifest_without_a_base_has_the_fields_of_version_1():
    tensors = tuple(replace(entry, deltas=()) for entry in manifest().tensors)
    full = replace(manifest(), version=1, base=None, tensors=tensors)
    body = json.loads(full.to_bytes())["manifest"]
    assert body["version"] == 1
    assert "base" not in body
    assert "deltas" not in body["tensors"][0]
    assert parse_manifest(full.to_bytes()) == full


def test_a_stored_difference_keeps_its_meaning():
    """A frame of the zigzag differences 0, -1, 1, -2, ... to 1000, 1001, ..."""
    differences = np.array([(i + 1) // 2 * (-1) ** i for i in range(64)])
    planes = np.arange(64, dtype="<u2").view(np.uint8).reshape(-1, 2).T
    data = bytes.fromhex(
        "28b52ffd24804d02001404000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
        "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f00010001251005f716fba6"
    )
    assert compression._decompress(data, 128, "here") == planes.tobytes()
    base = np.arange(1000, 1064, dtype="<u2")
    expected = (base + differences).astype("<u2")
    out = np.empty(128, np.uint8)

    def fill(memory):
        memory[:] = base.view(np.uint8)

    delta = compression.Delta(fill, zlib.crc32(expected.tobytes()))
    compression.decode_chunk(data, Chunk(len(data), zlib.crc32(data), False), out, 2, "", delta)
    assert np.array_equal(out.view("<u2"), expected)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_documented_program_decodes_differences(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 4 << 10)
    reader = {}
    exec(compile(PROGRAM, "checkpoint-format.md", "exec"), reader)
    torch.manual_seed(0)
    shapes = {"matrix": (48, 130), "thin": (300, 5), "bias": (9,), "scalar": (), "empty": (0, 40)}
    params = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = OPTIMIZERS[kind](params)
    for index in range(3):
        for _ in range(10 if index == 0 else 1):
            for _, param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        base = tmp_path / str(index - 1) if index else None
        saved = checkpoint.save(tmp_path / str(index), optimizer=optimizer, base=base)
    assert saved.chain == 3
    found = reader["read_moments"](tmp_path / "2")
    for state in optimizer.parameter_states():
        for moment in state.codecs:
            assert np.array_equal(found[state.name][moment], state.decode(moment).numpy())
    other = LUMA(params, seed=3)
    other.init_state()
    checkpoint.save(tmp_path / "1", optimizer=other, overwrite=True)
    with pytest.raises(AssertionError):
        reader["read_moments"](tmp_path / "2")


def test_every_field_of_the_base_is_described():
    assert [f.name for f in fields(BaseEntry) if f"| `{f.name}` |" not in DOCUMENT] == []
    assert f"at most {MAX_CHAIN - 1} |" in DOCUMENT
