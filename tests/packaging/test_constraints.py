"""constraints.txt pins, to one exact version, all that an install of this project brings in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "luma-state"


@pytest.fixture(scope="module")
def pins(repo: Path) -> dict[str, Requirement]:
    text = (repo / "constraints.txt").read_text()
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    requirements = [Requirement(line) for line in lines if line]
    by_name: dict[str, Requirement] = {canonicalize_name(pin.name): pin for pin in requirements}
    assert len(by_name) == len(requirements), "a name is pinned twice"
    return by_name


def exact_version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not exact"
    return specifier.version


def declared(project: dict[str, Any]) -> list[Requirement]:
    extras: dict[str, list[str]] = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    requirements = [Requirement(line) for line in lines]
    return [item for item in requirements if canonicalize_name(item.name) != PROJECT]


def test_every_pin_is_one_exact_version(pins: dict[str, Requirement]) -> None:
    for pin in pins.values():
        version = exact_version(pin)
        assert "*" not in version
        assert "+" not in version, f"{pin}: a local label fits one build only"
        assert pin.marker is None
        assert pin.url is None
        assert not pin.extras


def test_every_declared_dependency_is_pinned_within_its_bounds(
    project: dict[str, Any], pins: dict[str, Requirement]
) -> None:
    for requirement in declared(project):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} is not pinned"
        assert requirement.specifier.contains(exact_version(pin)), f"{pin} is not {requirement}"


def test_what_the_dependencies_need_is_pinned_too(
    project: dict[str, Any], pins: dict[str, Requirement]
) -> None:
    needed = set(installed_closure(declared(project)))
    assert len(needed) > len(declared(project))
    assert needed - pins.keys() == set()


def installed_closure(roots: list[Requirement]) -> Iterator[str]:
    """The names of `roots` and of all they require here; what is not installed is not opened."""
    queue = list(roots)
    seen = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        extras = tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        yield name
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        queue += [item for item in map(Requirement, lines) if applies(item, extras)]


def applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
