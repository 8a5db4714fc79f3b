"""What pip install puts on a user's machine, read from a wheel built from this tree."""

from __future__ import annotations

import runpy
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

# Whichever test comes first waits for the compiler.
pytestmark = pytest.mark.timeout(300)

# Each package and the folder it lies in.
PACKAGES = {
    "luma_core": ".",
    "luma_kernels": "kernels",
    "luma_server": "server",
    "luma_client": "client",
}


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read_metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def test_top_level_names_are_the_four_packages(files: set[str]) -> None:
    top = {name.split("/")[0] for name in files}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)


def test_every_module_of_the_tree_is_packed(repo: Path, files: set[str]) -> None:
    expected = {
        path.relative_to(repo / root).as_posix()
        for package, root in PACKAGES.items()
        for path in (repo / root / package).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so", ".o", ".md"}
    }
    assert expected - files == set()


@pytest.mark.parametrize("kind", ["tests", "benchmarks", "docker", "docs"])
def test_only_packages_are_packed(files: set[str], kind: str) -> None:
    assert [name for name in files if kind in name.split("/")] == []


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_package_is_marked_as_typed(files: set[str], package: str) -> None:
    assert f"{package}/py.typed" in files


def test_version_is_the_one_the_code_states(repo: Path, wheel: Path) -> None:
    stated = runpy.run_path(str(repo / "luma_core" / "_version.py"))["__version__"]
    assert HeaderParser().parsestr(read_metadata(wheel, "METADATA"))["Version"] == stated


def test_command_is_installed(wheel: Path) -> None:
    assert "luma = luma_client.cli:main" in read_metadata(wheel, "entry_points.txt").splitlines()


def test_the_readme_is_the_description(repo: Path, wheel: Path) -> None:
    metadata = read_metadata(wheel, "METADATA")
    assert "Description-Content-Type: text/markdown" in metadata
    assert metadata.endswith((repo / "README.md").read_text())


def test_license_is_packed(wheel: Path) -> None:
    assert "LUMA contributors" in read_metadata(wheel, "licenses/LICENSE")
