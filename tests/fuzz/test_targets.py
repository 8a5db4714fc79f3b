"""Damaged manifests and shards: read, or refused by an error of ours, in little memory."""

import json
import random
import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luma_core import checkpoint
from luma_core.errors import LumaError
from tests.fuzz import mutations
from tests.fuzz.targets import TARGETS, manifest_seeds, read_all, saved, sealed, shard_seeds

pytestmark = pytest.mark.usefixtures("little_memory")
examples = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_the_seeds_are_valid():
    read_all(saved())
    for target in TARGETS.values():
        for seed in target.seeds():
            target.run(seed)
    assert checkpoint.format.parse_manifest(manifest_seeds()[0]).parameters
    assert len(shard_seeds()) > 10


@examples
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes(name, seed):
    rng = random.Random(seed)
    target = TARGETS[name]
    target.run(mutations.changed_bytes(rng.choice(target.seeds()), rng))


@settings(examples, max_examples=500)
@given(seed=st.integers(0, 2**32))
def test_changed_fields_of_a_manifest_with_a_right_checksum(seed):
    rng = random.Random(seed)
    body = json.loads(manifest_seeds()[0])["manifest"]
    changed = mutations.changed_json(body, rng)
    TARGETS["manifest"].run(json.dumps({"manifest": changed}).encode())


@settings(examples, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_checkpoints_with_changed_fields_are_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    body = json.loads(manifest_seeds()[0])["manifest"]
    changed = mutations.changed_json(body, rng)
    for path in saved().iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "luma.json").unlink()
    try:
        (tmp_path / "luma.json").write_bytes(sealed(changed))
        read_all(tmp_path)
    except LumaError:
        pass


def bombs():
    """Frames of zstd that are small and claim, or become, something large."""
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    zeros = np.zeros(1 << 28, np.uint8).data
    yield compressor.compress(zeros)
    yield zstandard.ZstdCompressor(level=1, write_content_size=False).compress(zeros)
    # A frame header that claims 2**60 bytes, with nothing behind it.
    yield struct.pack("<IB", 0xFD2FB528, 0b11100100) + struct.pack("<Q", 1 << 60) + bytes(9)
    yield compressor.compress(b"x") * 3


@pytest.mark.parametrize("index", range(4))
def test_bombs_are_not_unpacked(index):
    bomb = list(bombs())[index]
    assert zlib.crc32(bomb) >= 0
    for chosen in range(12):
        TARGETS["shard"].run(bytes([chosen]) + bomb)
