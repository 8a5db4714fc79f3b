"""The native library is built where there is a compiler, and left out where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LIBRARY = "luma_kernels/cpu/_native.so"
# Leftovers of earlier builds would be packed again.
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"),
    *("*.so", "tests"),
)


def build_wheel(repo: Path, tree: Path, **environment: str) -> Path:
    shutil.copytree(repo, tree, ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tree)]
    build = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_with_a_compiler_it_is_packed_for_every_python(repo: Path, tmp_path: Path) -> None:
    wheel = build_wheel(repo, tmp_path / "tree")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract(LIBRARY, tmp_path))
    check = (
        "import sys; from pathlib import Path; from luma_kernels.cpu.library import NativeLibrary;"
        "print(NativeLibrary(Path(sys.argv[1])).instruction_sets)"
    )
    command = [sys.executable, "-c", check, str(library)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_a_compiler_the_package_is_built_all_the_same(repo: Path, tmp_path: Path) -> None:
    wheel = build_wheel(repo, tmp_path / "tree", CC="false", CXX="false")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert LIBRARY not in names
    assert "luma_kernels/cpu/library.py" in names
    assert "luma_kernels/cpu/src/kernels.cpp" in names
