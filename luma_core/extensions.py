"""Codecs and formats that other packages bring, by entry points of their distributions.

They are loaded when a name is not known, or when all names are asked for. One that cannot be
loaded is a warning that names its package, and nothing else fails by it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("luma")


@dataclass(frozen=True)
class Extension:
    """Something that another package brings.

    Attributes:
        group: of the entry point: ``luma_core.codecs`` or ``luma_core.formats``.
        name: the entry point's own.
        package: name and version of the distribution that declares it.
        problem: why it cannot be used; empty where it can.
    """

    group: str
    name: str
    package: str
    problem: str = ""


class EntryPoints:
    """The entry points of one group, loaded once.

    Args:
        group: their group.
        register: called with what each stands for; raises what it likes.
    """

    def __init__(self, group: str, register: Callable[[Any], object]) -> None:
        self._group = group
        self._register = register
        self._lock = threading.RLock()
        self._found: list[Extension] | None = None
        self._done = False

    def load(self) -> tuple[Extension, ...]:
        """Load those that were not loaded yet, and return all."""
        if not self._done:
            with self._lock:
                # What is loaded may ask for names itself; it sees those that are there.
                if self._found is None:
                    self._found = []
                    self._load_all(self._found)
                    self._done = True
        return tuple(self._found or ())

    def _load_all(self, found: list[Extension]) -> None:
        from importlib.metadata import entry_points

        for point in entry_points(group=self._group):
            package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
            problem = ""
            try:
                self._register(point.load())
            # Another package's code raises what it likes, and may even try to end the process.
            except (Exception, SystemExit) as error:
                problem = f"{type(error).__name__}: {error}"
                _log.warning(
                    "entry point %r in %s of package %s cannot be used: %s",
                    point.name,
                    self._group,
                    package,
                    problem,
                )
            found.append(Extension(self._group, point.name, package, problem))
