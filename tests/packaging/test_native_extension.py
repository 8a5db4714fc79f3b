"""The native library is built where there is a compiler, and left out where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Whichever test comes first waits for the compiler.
pytestmark = pytest.mark.timeout(300)

LIBRARY = "luma_kernels/cpu/_native.so"


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@NEEDS_COMPILER
def test_with_a_compiler_it_is_packed_for_every_python(wheel: Path, tmp_path: Path) -> None:
    check_native_wheel(wheel, tmp_path)


@NEEDS_COMPILER
@pytest.mark.heavy
def test_the_compiler_optimizes_it_as_pip_has_it_built(
    build_wheel: Callable[[dict[str, str]], Path], tmp_path: Path
) -> None:
    check_native_wheel(build_wheel({}), tmp_path)


def check_native_wheel(wheel: Path, tmp_path: Path) -> None:
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


def test_without_a_compiler_the_package_is_built_all_the_same(
    build_wheel: Callable[[dict[str, str]], Path],
) -> None:
    wheel = build_wheel({"CC": "false", "CXX": "false"})
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert LIBRARY not in names
    assert "luma_kernels/cpu/library.py" in names
    assert "luma_kernels/cpu/src/kernels.cpp" in names
