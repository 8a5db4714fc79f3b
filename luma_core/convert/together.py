"""Conversion to a LUMA checkpoint by several processes, each of which writes some shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Unpack, cast

from torch import distributed as dist

from luma_core.checkpoint import MAX_SHARD_BYTES, Compression, SaveOptions
from luma_core.checkpoint.format.plan import Plan, plan_save
from luma_core.checkpoint.storage.open import open_store
from luma_core.checkpoint.write.coordination import Ranks, group_or_default
from luma_core.checkpoint.write.save_run import SaveRun
from luma_core.convert.base import (
    ConvertKeywords,
    ConvertOptions,
    Progress,
    Url,
    total_elements,
)
from luma_core.convert.coding_errors import warn_of_errors
from luma_core.convert.conversion import ConversionReport, open_source
from luma_core.convert.formats import luma
from luma_core.convert.registry import target_names
from luma_core.errors import ConfigurationError
from luma_core.keywords import merge_keywords, show_keywords, with_keywords


def convert_together(
    src: Url,
    dst: Url,
    *,
    to: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
    options: ConvertOptions | None = None,
    **keywords: Unpack[ConvertKeywords],
) -> ConversionReport:
    """Convert AdamW state to a LUMA checkpoint; all processes call it together.

    Files have the bytes that `convert` gives them in one process. Each process reads and codes what
    belongs into its shards; all processes must reach both places. The coordinator rank
    commits the checkpoint. If one fails, all raise what it raised.

    Args:
        src: as `convert` takes it.
        dst: folder of the checkpoint.
        to: must be ``"luma"``: other formats are one file, or folders whose files depend on who
            wrote them.
        max_shard_bytes: uncompressed bound on a shard, which is what processes share out.
        progress: called with bytes done and in total, of this process's shards.
        group: the processes; all by default.
        options: the keywords that follow, together; those that are given replace them.

    Raises:
        ConfigurationError: ``to`` is another format, or an option has a value that cannot work.
        StorageError: a process failed or disappeared; what was at ``dst`` is whole.
        LumaError: whatever else `convert` raises.
    """
    if to != luma.FORMAT:
        known = "is written by one process" if to in target_names() else "is not a format"
        raise ConfigurationError(
            f"to={to!r} {known}; several processes write {luma.FORMAT!r} only.",
            hint="Run it without torchrun.",
        )
    given = merge_keywords("convert_together", ConvertOptions, options, keywords)
    saving = SaveOptions(
        compression=cast(Compression, given.compression),
        overwrite=given.overwrite,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )
    store = open_store(dst)
    ranks = Ranks(group_or_default(group))
    opened: list[tuple[luma.EncodedState, Plan]] = []

    def plan() -> tuple[int, int, str]:
        source = open_source(src, model=given.model)
        state = luma.EncodedState(
            source, block_size=given.block_size, seed=given.seed, codec=given.codec
        )
        opened.append((state, plan_save(state, None, None, max_shard_bytes)))
        return total_elements(source.parameters()), source.stored_bytes, source.format

    elements, source_bytes, source_format = ranks.run_on_all_ranks(plan)[0]
    state, whole = opened[0]
    manifest = SaveRun(store, _share(whole, ranks), ranks, saving).run()
    for parts in ranks.all_gather(state.errors.parts()):
        state.errors.add(parts)
    errors, update = state.errors.by_moment(), state.errors.update()
    if ranks.is_coordinator:
        warn_of_errors(errors, update)
    return ConversionReport(
        parameters=len(manifest.parameters),
        elements=elements,
        source_bytes=source_bytes,
        result_bytes=manifest.summary.stored_bytes,
        source_format=source_format,
        target_format=to,
        destination=os.fspath(dst),
        errors=errors,
        update=update,
    )


show_keywords(convert_together, ConvertOptions)
convert_together.__doc__ = with_keywords(convert_together.__doc__ or "", ConvertOptions)


def _share(whole: Plan, ranks: Ranks) -> Plan:
    """Return the plan with the run of shards that this process writes."""
    shards = whole.shards.get("optimizer", [])
    sizes = [sum(tensor.nbytes for tensor in shard) for shard in shards]
    mine = _share_out(sizes, ranks.world_size)[ranks.rank]
    return replace(whole, shards={"optimizer": [shards[index] for index in mine]})


def _share_out(sizes: Sequence[int], world_size: int) -> list[range]:
    """Return which of some items in a row each rank takes: runs of about equal size.

    An item goes to the rank in whose share of the total its middle lies.
    """
    total, done, owners = max(sum(sizes), 1), 0, []
    for size in sizes:
        owners.append(min(world_size - 1, (2 * done + size) * world_size // (2 * total)))
        done += size
    ends = [sum(owner < rank for owner in owners) for rank in range(world_size + 1)]
    return [range(*pair) for pair in pairwise(ends)]
