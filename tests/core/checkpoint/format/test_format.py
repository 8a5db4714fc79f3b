"""Format version 1, byte for byte: what is written today must be readable for good."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from luma_core.checkpoint import Manifest, Summary
from luma_core.checkpoint.format import FileEntry, ParameterEntry, TensorEntry
from luma_core.checkpoint.format import parse_manifest as parse
from luma_core.checkpoint.format.compression import Chunk, decode_chunk
from luma_core.checkpoint.format.manifest import canonical_json
from luma_core.checkpoint.format.shard import header_bytes
from luma_core.checkpoint.storage.names import shard_generation, shard_name
from luma_core.errors import CorruptCheckpointError

SHARD = "optimizer-00001-of-00001.safetensors"


def manifest():
    codec = {"name": "fp32", "block_size": 128}
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        software="luma-state 0.1.0",
        algorithm="luma",
        named=True,
        compression="none",
        chunk_bytes=64,
        groups=({"lr": 1e-8, "betas": [0.9, 0.999]},),
        parameters=(ParameterEntry("é", (2, 2), "float32", 0, 3, -5, 0, {"exp_avg": codec}),),
        tensors=(TensorEntry("é/exp_avg.value", SHARD, "F32", (2, 2), 0, (Chunk(16, 7, True),)),),
        files=(FileEntry(SHARD, 160, "0" * 64, "optimizer"),),
        summary=Summary(1, 4, 16, 160, 3),
        generation=1,
        extra=None,
    )


def test_a_manifest_keeps_its_bytes():
    data = manifest().to_bytes()
    assert data.startswith(b'{\n "checksum": "sha256:')
    assert data.endswith(b'  "version": 1\n }\n}\n')
    assert b'"name": "\\u00e9"' in data
    assert b'"lr": 1e-08' in data
    digest = "fcbe2e58d198ca2b0bccde9e986a6f7831c08958d5442fa00770a1406481e81e"
    assert manifest().digest == digest
    assert parse(data) == manifest()
    assert parse(data).digest == digest


def test_a_manifest_is_canonical_json_as_a_whole():
    strange = {"line\nbreak": ["\n ", {}, [], {"\u2028": '"\\n'}]}
    data = replace(manifest(), extra=strange).to_bytes()
    assert data == canonical_json(json.loads(data))
    assert parse(data).extra == strange


def test_a_header_keeps_its_bytes():
    entries = [
        TensorEntry("a/m.codes", SHARD, "I16", (3, 2), 0, (Chunk(12, 0, True),)),
        TensorEntry("b/m.codes", SHARD, "I16", (4,), 12, (Chunk(5, 0, False),)),
    ]
    assert header_bytes(entries, 2) == (
        b"\xb8\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt","luma_generation":"2"},'
        b'"a/m.codes":{"dtype":"I16","shape":[3,2],"data_offsets":[0,12]},'
        b'"b/m.codes":{"dtype":"U8","shape":[5],"data_offsets":[12,17]}}    '
    )


def test_a_stored_chunk_keeps_its_meaning():
    """A zstd frame of the low bytes of 0, 1, ..., 63 and then of their high bytes."""
    data = bytes.fromhex(
        "28b52ffd24804d02001404000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
        "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f00010001251005f716fba6"
    )
    out = np.empty(128, np.uint8)
    decode_chunk(data, Chunk(len(data), 0x13ED4F3E, False), out, 2, "here")
    assert np.array_equal(out.view(np.uint16), np.arange(64))


def test_shard_names():
    assert shard_name("optimizer", 1, 2, 30) == "optimizer-00002-of-00030.safetensors"
    assert shard_name("model", 4, 1, 123456) == "model-g4-00001-of-123456.safetensors"
    for generation in (1, 2, 30):
        assert shard_generation(shard_name("extra", generation, 1, 1)) == generation
    for name in ("optimizer.safetensors", "other-00001-of-00001.safetensors", SHARD + "x"):
        assert shard_generation(name) is None


def test_the_checksum_is_that_of_the_body():
    data = manifest().to_bytes()
    wrong = hashlib.sha256(b"").hexdigest().encode()
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        parse(data.replace(manifest().digest.encode(), wrong))
