"""Commit strategies: how a store makes a manifest the folder's checkpoint, and what it promises.

Whichever applies, shards are written first under names that no committed manifest refers to, and
the manifest last; so a reader sees the previous checkpoint or the new one. The strategies differ in
what happens when two processes save to one folder.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar


class CommitStrategy(ABC):
    """How commits are made.

    Attributes:
        name: of the strategy.
        refuses_late: whether the store itself refuses a manifest that would replace another than
            the saver began with, so that what such a saver wrote may be removed at any time.
    """

    name: ClassVar[str]
    refuses_late: ClassVar[bool]


class AtomicRename(CommitStrategy):
    """Local folders: a file is written under a temporary name, synced and renamed.

    A saver holds a lock of the folder from start to end, which ends with its process. A second
    saver is told at once. Where a file system has no such locks (some network file systems), the
    second compares the manifest before it renames its own, which leaves a moment in which both
    may rename; each checkpoint is whole even so, for their shards have different names.
    """

    name = "atomic-rename"
    refuses_late = False


class ConditionalPut(CommitStrategy):
    """Object stores whose PUT can demand what it replaces (If-None-Match, If-Match).

    The manifest replaces exactly the one that was there when the save began, or none. The slower
    of two savers is told when it commits, and its shards are removed.
    """

    name = "conditional-put"
    refuses_late = True


class ManifestLast(CommitStrategy):
    """All other stores: a plain PUT of the manifest, last.

    A saver compares the manifest just before its own PUT and is told if it changed meanwhile. Two
    savers that commit within that moment are not told: the later one's checkpoint stands, whole.
    Nothing but the files of the replaced checkpoint is removed, for others may belong to a saver
    at work; `CheckpointManager.collect_garbage` removes them once they are old.
    """

    name = "manifest-last"
    refuses_late = False
