"""Checks what contracts of imports cannot say: sizes of folders and files, and circles of modules.

Usage: ``python tools/structure.py``. Prints what is wrong, and exits with 1 if anything is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

MAX_MODULES = 24
"""In one folder, tests too: more than that is a room for two things."""

MAX_LINES = 400
"""In one file: past that it holds two ideas."""

PACKAGES = ("luma_core", "luma_kernels", "luma_client", "luma_server")
LOOKED_AT = ("luma_core", "kernels", "client", "server", "tests", "benchmarks", "examples", "tools")

FULL_FOLDERS = {}
"""Folders that hold more, and why."""

LONG_FILES: dict[str, str] = {}
"""Files that are longer, and why."""

KNOWN_IMPORTS: dict[tuple[str, str], str] = {}
"""Imports that close a circle, and why."""


def python_files(root: Path) -> Iterator[Path]:
    """Yield this project's Python files, relative to ``root``."""
    for folder in LOOKED_AT:
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root)


def crowded_folders(root: Path, known: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with how many modules lie in folders."""
    counts = Counter(path.parent.as_posix() for path in python_files(root))
    for folder, count in sorted(counts.items()):
        if count > MAX_MODULES and folder not in known:
            yield f"{folder}: {count} modules; a folder holds at most {MAX_MODULES}: part it."
    for folder in known:
        if counts[folder] <= MAX_MODULES:
            yield f"{folder}: listed as full, and is not: take it off the list."


def long_files(root: Path, known: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with how long files are."""
    counts = {
        path.as_posix(): len((root / path).read_text().splitlines()) for path in python_files(root)
    }
    for file, count in counts.items():
        if count > MAX_LINES and file not in known:
            yield f"{file}: {count} lines; a file has at most {MAX_LINES}: part it."
    for file in known:
        if counts.get(file, 0) <= MAX_LINES:
            yield f"{file}: listed as long, and is not: take it off the list."


def imports_of(packages: tuple[str, ...]) -> dict[str, set[str]]:
    """Return what each module imports, within functions and for types alone too."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    return {name: graph.find_modules_directly_imported_by(name) for name in sorted(graph.modules)}


def circles(imports: Mapping[str, set[str]], known: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield what is wrong with modules that import each other."""
    kept = {name: set(found) for name, found in imports.items()}
    for importer, imported in known:
        if imported not in kept.get(importer, ()):
            yield f"{importer} -> {imported}: listed as known, and is gone: take it off the list."
        else:
            kept[importer].remove(imported)
    try:
        TopologicalSorter(kept).prepare()
    except CycleError as error:
        yield f"a circle of imports: {' <- '.join(error.args[1])}."


def main() -> int:
    """Print all that is wrong; return the exit code."""
    root = Path(__file__).resolve().parent.parent
    found = [
        *crowded_folders(root, FULL_FOLDERS),
        *long_files(root, LONG_FILES),
        *circles(imports_of(PACKAGES), KNOWN_IMPORTS),
    ]
    print("\n".join(found) or "Folders, files and imports are as they should be.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
