"""docs/architecture.md draws the tree as it is: nothing is missing, and nothing is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGES = {
    "luma_core": ".",
    "luma_kernels": "kernels",
    "luma_client": "client",
    "luma_server": "server",
}
_NAMES = re.compile(r"( *)((?:[\w/]+(?:/|\.py)  ?)*[\w/]+(?:/|\.py))(?: |$)")


def drawn(text: str) -> set[str]:
    """Return folders and modules that the first drawing of a page names, as paths."""
    found: set[str] = set()
    folders: dict[int, str] = {}
    for line in text.split("```")[1].splitlines():
        match = _NAMES.match(line)
        if match is None or len(match[1]) > 8:
            continue
        above = next((folders[at] for at in range(len(match[1]) - 1, -1, -1) if at in folders), "")
        for name in match[2].split():
            found.add(above + name)
        if match[2].endswith("/"):
            folders = {at: folder for at, folder in folders.items() if at < len(match[1])}
            folders[len(match[1])] = above + match[2]
    return found


def undrawn(modules: set[str], named: set[str]) -> set[str]:
    """Return the modules that are neither named nor in a folder of which none is named."""
    partly = {name.rpartition("/")[0] + "/" for name in named if name.endswith(".py")}
    whole = {name for name in named if name.endswith("/")} - partly
    return {name for name in modules - named if name.rpartition("/")[0] + "/" not in whole}


@pytest.fixture(scope="module")
def named(repo: Path) -> set[str]:
    return drawn((repo / "docs" / "architecture.md").read_text())


def test_every_module_is_named_or_its_folder_is(repo: Path, named: set[str]) -> None:
    modules = {
        path.relative_to(repo).as_posix()
        for package, root in PACKAGES.items()
        for path in (repo / root / package).rglob("*.py")
        if not path.name.startswith("_")
    }
    assert undrawn(modules, named) == set()


def test_what_is_named_is_there(repo: Path, named: set[str]) -> None:
    assert {name for name in named if not (repo / name).exists()} == set()


def test_what_is_missing_is_found() -> None:
    page = "```\na/   what\n  b.py  c.py   two\n  d/    a room\n```"
    assert drawn(page) == {"a/", "a/b.py", "a/c.py", "a/d/"}
    assert undrawn({"a/b.py", "a/e.py", "a/d/f.py", "a/d/g/h.py"}, drawn(page)) == {
        "a/e.py",
        "a/d/g/h.py",
    }
