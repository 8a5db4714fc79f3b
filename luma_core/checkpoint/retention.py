"""Which steps of a run are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from luma_core.errors import ConfigurationError


@dataclass(frozen=True)
class Retention:
    """What `luma_core.checkpoint.CheckpointManager` keeps.

    Attributes:
        keep_last: how many of the latest steps.
        keep_every: steps divisible by it.
        pinned: these steps.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    keep_last: int | None
    keep_every: int | None
    pinned: Iterable[int]

    def __post_init__(self) -> None:
        for name, value in (("keep_last", self.keep_last), ("keep_every", self.keep_every)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(f"{name}={value!r} must be a positive integer or None.")
        object.__setattr__(self, "pinned", _checked_steps(self.pinned))

    @property
    def keeps_all(self) -> bool:
        """Whether no step is ever removed."""
        return self.keep_last is None and self.keep_every is None

    def kept(self, steps: Sequence[int], bases: Mapping[int, int] | None) -> set[int]:
        """Return which steps are kept, beside what these hold differences to.

        Args:
            steps: all finished ones, in order.
            bases: of those with differences, what they hold them to. The first step of the chain
                before the last one is then kept too: one damaged byte in the first of a chain is
                the end of all of it. ``None`` where all steps are full.
        """
        found = {step for step in steps if self._is_kept(step)}
        found.update(steps[-(self.keep_last or 1) :])
        if bases is not None and steps:
            earlier = [step for step in steps if step < _first_of_chain(steps[-1], bases)]
            found.update(_first_of_chain(step, bases) for step in earlier[-1:])
        return found

    def _is_kept(self, step: int) -> bool:
        return step in self.pinned or (self.keep_every is not None and step % self.keep_every == 0)


def _first_of_chain(step: int, bases: Mapping[int, int]) -> int:
    # Damaged manifests may name each other.
    while bases.get(step, step) < step:
        step = bases[step]
    return step


def _checked_steps(pinned: object) -> frozenset[int]:
    steps: set[int] = set()
    for step in pinned if isinstance(pinned, Iterable) else [pinned]:
        if type(step) is int and step >= 0:
            steps.add(step)
        else:
            raise ConfigurationError(
                f"pinned={pinned!r} must be steps, integers of 0 or more.",
                hint="For example pinned=[1000, 2000].",
            )
    return frozenset(steps)
