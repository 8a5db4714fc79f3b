"""Which checkpoints a listing is about, and the pages it comes in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from luma_core.wire import CheckpointInfo, CheckpointPage, RunInfo, RunList
from luma_server.catalog.checkpoints import Catalog
from luma_server.catalog.listing import Seen
from luma_server.http.problems import ApiError

MAX_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What checkpoints must be to be listed; ``None`` and empty ask for nothing.

    Attributes:
        run: name of the run.
        prefix: what ``run/step`` begins with.
        labels: ``key`` or ``key:value`` of each label that must be there.
        pinned: whether it is pinned.
        optimizer: the optimizer's algorithm.
        min_step: fewest completed steps.
        max_step: most completed steps.
    """

    run: str | None = None
    prefix: str = ""
    labels: tuple[str, ...] = ()
    pinned: bool | None = None
    optimizer: str | None = None
    min_step: int | None = None
    max_step: int | None = None

    def take_name(self, seen: Seen) -> bool:
        """Whether the name alone leaves a checkpoint in."""
        return f"{seen.run}/{seen.step}".startswith(self.prefix)

    def take(self, info: CheckpointInfo) -> bool:
        """Whether a checkpoint is listed."""
        step = info.optimizer_step
        return (
            self.pinned in (None, info.pinned)
            and self.optimizer in (None, info.algorithm)
            and (self.min_step is None or (step is not None and step >= self.min_step))
            and (self.max_step is None or (step is not None and step <= self.max_step))
            and all(_has_label(info.labels, wanted) for wanted in self.labels)
        )


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, separator, value = wanted.partition(":")
    return key in labels and (not separator or labels[key] == value)


def list_page(
    catalog: Catalog,
    filters: Filters,
    *,
    allowed: Callable[[str], bool],
    limit: int,
    cursor: str | None,
) -> CheckpointPage:
    """Return one page of a listing; blocks.

    Only the manifests of the page are read, and of those that the filters leave out on the way.

    Args:
        catalog: what to list.
        filters: which of it.
        allowed: whether whoever asks may see a run.
        limit: entries of the page.
        cursor: ``next_cursor`` of the page before.

    Raises:
        ApiError: the cursor is none of ours.
        StorageError: the store failed.
    """
    last = None if cursor is None else _decode(cursor)
    walk = catalog.seen(filters.run, last)
    seen = (one for one in walk if allowed(one.run) and filters.take_name(one))
    found = list(islice(filter(filters.take, catalog.infos(seen)), limit + 1))
    more = len(found) > limit
    items = tuple(found[:limit])
    return CheckpointPage(items, _encode(items[-1]) if more else None)


def list_runs(catalog: Catalog, allowed: Callable[[str], bool]) -> RunList:
    """Return all runs that have checkpoints; blocks."""
    runs: dict[str, list[Seen]] = {}
    for one in catalog.seen():
        if allowed(one.run):
            runs.setdefault(one.run, []).append(one)
    return RunList(tuple(RunInfo(run, len(found), found[-1].step) for run, found in runs.items()))


def _encode(info: CheckpointInfo) -> str:
    return base64.urlsafe_b64encode(json.dumps([info.run, info.step]).encode()).decode()


def _decode(cursor: str) -> Seen:
    try:
        run, step = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not (isinstance(run, str) and isinstance(step, str)):
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise ApiError(
            "invalid_request",
            "query.cursor: it is not the next_cursor of a page.",
            hint="Leave it out for the first page.",
        ) from error
    return Seen(run, step, "")
