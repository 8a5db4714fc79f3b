"""Cases of `test_convert.py`: several processes convert together."""

from pathlib import Path

import pytest
import torch.distributed as dist

from luma_core.checkpoint.format.shard import ShardWriter
from luma_core.convert import convert_together
from luma_core.errors import CheckpointNotFoundError, ConfigurationError, StorageError

SHARD_BYTES = 30_000


def together(argument: str, folder: Path) -> None:
    source, _, codec = argument.partition(",")
    report = convert_together(
        folder / source,
        folder / f"{source}-{codec}-{dist.get_world_size()}",
        to="luma",
        codec=codec,
        seed=3,
        max_shard_bytes=SHARD_BYTES,
    )
    assert report.errors["exp_avg"].relative_rms > 0
    (folder / f"report-{dist.get_rank()}").write_text(repr(report.errors))


def refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="to='adamw' is written by one process"):
        convert_together(folder / "a.pt", folder / "b.pt", to="adamw")
    with pytest.raises(CheckpointNotFoundError):
        convert_together(folder / "nothing", folder / "never", to="luma")
    assert not (folder / "never").exists()


def one_fails(folder: Path) -> None:
    original = ShardWriter.write

    def fail(self, name, kind, tensors):
        if dist.get_rank() == 1:
            raise OSError(28, "No space left on device")
        return original(self, name, kind, tensors)

    ShardWriter.write = fail
    try:
        with pytest.raises((StorageError, OSError), match="No space"):
            convert_together(
                folder / "a.pt", folder / "failed", to="luma", max_shard_bytes=SHARD_BYTES
            )
    finally:
        ShardWriter.write = original
