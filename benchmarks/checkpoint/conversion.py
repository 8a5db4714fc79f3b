"""Rows that turn one checkpoint into another, and the copy that they are measured by."""

from __future__ import annotations

import os
import shutil

from benchmarks.checkpoint.measure import Job, Result, dropped, luma_optimizer, measured

PIECE_BYTES = 8 << 20


def to_adamw(job: Job) -> Result:
    """Save with LUMA, then convert to what torch.optim.AdamW loads."""
    from luma_core import checkpoint
    from luma_core.convert import convert

    source, target = job.folder / "luma", job.folder / "adamw"
    checkpoint.save(source, optimizer=luma_optimizer(job, with_state=True), compression="none")
    target.mkdir()
    dropped(source)

    def work() -> None:
        convert(source, target / "optimizer.pt", to="adamw")

    return measured(work, job, folder=target)


def copy(job: Job) -> Result:
    """Copy the AdamW file, which is the larger side, and sync the copy."""
    source, target = job.folder / "adamw" / "optimizer.pt", job.folder / "copy"
    target.mkdir()
    dropped(source.parent)

    def work() -> None:
        with source.open("rb", buffering=0) as old, (target / "copy").open("wb") as new:
            shutil.copyfileobj(old, new, PIECE_BYTES)
            new.flush()
            os.fsync(new.fileno())

    result = measured(work, job, folder=target)
    shutil.rmtree(target)
    return result


def from_adamw(job: Job) -> Result:
    """Convert that file back to LUMA; counted by the larger side as well."""
    from luma_core.convert import convert

    source = job.folder / "adamw"
    dropped(source)

    def work() -> None:
        target = job.folder / "back"
        convert(source / "optimizer.pt", target, to="luma", compression="none")

    return measured(work, job, folder=source)
