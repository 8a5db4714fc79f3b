"""What `tools/structure.py` and the contracts of imports find, and that they find it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def structure(repo: Path) -> ModuleType:
    pytest.importorskip("grimp")
    spec = importlib.util.spec_from_file_location("luma_structure", repo / "tools/structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root: Path, folder: str, files: dict[str, str]) -> None:
    (root / folder).mkdir(parents=True)
    for name, text in files.items():
        (root / folder / name).write_text(text)


def test_a_full_folder_is_found(structure: ModuleType, tmp_path: Path) -> None:
    limit = structure.MAX_MODULES
    write(tmp_path, "luma_core/full", {f"m{i}.py": "" for i in range(limit + 1)})
    write(tmp_path, "tests/fits", {f"m{i}.py": "" for i in range(limit)})
    (found,) = structure.crowded_folders(tmp_path, {})
    assert found.startswith(f"luma_core/full: {limit + 1} modules")
    assert list(structure.crowded_folders(tmp_path, {"luma_core/full": "because"})) == []
    (_, stale) = structure.crowded_folders(tmp_path, {"tests/fits": "because"})
    assert "take it off the list" in stale


def test_a_long_file_is_found(structure: ModuleType, tmp_path: Path) -> None:
    limit = structure.MAX_LINES
    write(tmp_path, "client/a", {"long.py": "x = 1\n" * (limit + 1), "fits.py": "x = 1\n" * limit})
    (found,) = structure.long_files(tmp_path, {})
    assert found.startswith(f"client/a/long.py: {limit + 1} lines")
    assert list(structure.long_files(tmp_path, {"client/a/long.py": "because"})) == []
    (_, stale) = structure.long_files(tmp_path, {"client/a/fits.py": "because"})
    assert "take it off the list" in stale


def test_a_circle_is_found_wherever_the_import_stands(
    structure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "luma_structure_sample"
    write(
        tmp_path,
        package,
        {
            "__init__.py": "",
            "a.py": f"from {package} import b\n",
            "b.py": f"def f():\n    from {package} import c\n",
            "c.py": "from typing import TYPE_CHECKING\n\n"
            f"if TYPE_CHECKING:\n    from {package} import a\n",
            "d.py": f"from {package} import a\n",
        },
    )
    monkeypatch.syspath_prepend(tmp_path)
    imports = structure.imports_of((package,))
    (found,) = structure.circles(imports, {})
    assert {f"{package}.{name}" for name in "abc"} <= set(found.rstrip(".").split())
    assert list(structure.circles(imports, {(f"{package}.c", f"{package}.a"): "because"})) == []
    stale, _ = structure.circles(imports, {(f"{package}.d", f"{package}.c"): "because"})
    assert "take it off the list" in stale


def test_the_contracts_are_read_and_kept(repo: Path) -> None:
    pytest.importorskip("importlinter")
    # In a process of its own: it disables the loggers of whoever calls it.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--config", "pyproject.toml", "--no-cache"],
        cwd=repo,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels", "client", "server"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " kept, 0 broken" in done.stdout


def test_the_tree_is_as_it_should_be(
    structure: ModuleType, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("server", "client", "kernels", "."):
        monkeypatch.syspath_prepend(str(repo / folder))
    assert structure.main() == 0
