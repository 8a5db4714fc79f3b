"""Options of a save are spelled once, and mean the same however they are given."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest

from luma_core import checkpoint
from luma_core.checkpoint import CheckpointManager, Manifest, SaveHandle, SaveOptions
from luma_core.checkpoint.write.options import SaveKeywords
from luma_core.errors import CheckpointExistsError, ConfigurationError


@pytest.fixture
def run(new_run):
    return new_run()


def test_keywords_are_the_fields_of_the_dataclass():
    assert get_type_hints(SaveKeywords) == get_type_hints(SaveOptions)


def test_a_keyword_takes_the_place_of_an_option(tmp_path: Path, run):
    options = SaveOptions(compression="none", max_shard_bytes=1)
    plain = checkpoint.save(tmp_path / "a", optimizer=run.optimizer, options=options)
    packed = checkpoint.save(
        tmp_path / "b", optimizer=run.optimizer, options=options, compression="zstd"
    )
    assert (plain.compression, packed.compression) == ("none", "zstd")
    assert len(plain.files) == len(packed.files) > 1
    with pytest.raises(CheckpointExistsError):
        checkpoint.save(tmp_path / "a", optimizer=run.optimizer, options=options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compression", "gzip"),
        ("overwrite", 1),
        ("max_shard_bytes", 0),
        ("max_shard_bytes", True),
        ("max_memory_bytes", 1),
        ("replicas", "all"),
    ],
)
def test_values_that_cannot_work_are_named(option: str, value: object):
    with pytest.raises(ConfigurationError, match=f"^{option}={value!r} must be"):
        SaveOptions(**{option: value})


def test_what_is_no_option_is_refused(tmp_path: Path, run):
    with pytest.raises(TypeError, match=r"save\(\) got an unexpected keyword.*compresion"):
        checkpoint.save(tmp_path / "a", optimizer=run.optimizer, compresion="zstd")
    with pytest.raises(ConfigurationError, match="must be SaveOptions, or None"):
        checkpoint.save(tmp_path / "a", optimizer=run.optimizer, options={"overwrite": True})
    assert not (tmp_path / "a").exists()


def test_async_save_returns_a_handle_and_save_a_manifest(tmp_path: Path, run):
    manager = CheckpointManager(tmp_path / "run")
    handles = [
        checkpoint.async_save(tmp_path / "a", optimizer=run.optimizer, extra=[1], overwrite=True),
        checkpoint.save(tmp_path / "b", optimizer=run.optimizer, extra=[1], wait=False),
        manager.async_save(1, optimizer=run.optimizer, extra=[1], compression="none"),
    ]
    assert all(type(handle) is SaveHandle for handle in handles)
    assert type(manager.save(2, optimizer=run.optimizer)) is Manifest
    manifests = [handle.result() for handle in handles]
    assert [manifest.compression for manifest in manifests] == ["zstd", "zstd", "none"]
    assert checkpoint.load(tmp_path / "a", optimizer=run.optimizer).extra == [1]
    assert manager.steps() == [1, 2]
