from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def project(repo: Path) -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    return table


# Leftovers of earlier builds would be packed again.
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"),
    "*.so",
)


@pytest.fixture(scope="session")
def build_wheel(
    repo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, str]], Path]:
    """Builds a wheel from a copy of this tree, with more environment variables."""

    def build(environment: dict[str, str]) -> Path:
        tree = tmp_path_factory.mktemp("source") / "tree"
        shutil.copytree(repo, tree, ignore=NOT_SOURCE)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tree)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = (tree / "dist").glob("*.whl")
        return wheel

    return build


@pytest.fixture(scope="session")
def wheel(
    build_wheel: Callable[[dict[str, str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Built as pip builds it here, with the native library where there is a compiler.

    All is compiled and linked as always but without optimization, which takes minutes and which
    no test here looks at.
    """
    compiler = shutil.which("c++")
    if compiler is None:
        return build_wheel({})
    quick = tmp_path_factory.mktemp("compiler") / "c++"
    quick.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" -O0\n')
    quick.chmod(0o755)
    return build_wheel({"CXX": str(quick)})
