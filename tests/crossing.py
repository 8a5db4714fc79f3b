"""Parameters of tests that cross several options."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def crossed(*axes: Sequence[Any]) -> list[Any]:
    """All combinations of three options, in the order of ``pytest.mark.parametrize``.

    By default as few of them run as let any two values of different options meet, where the last
    option has the fewest values; the others are ``heavy``.
    """
    fewest = len(axes[-1])
    found = []
    for places in product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        marks = [pytest.mark.heavy] if sum(places) % fewest else []
        found.append(pytest.param(*values, marks=marks))
    return found
