"""What importing the packages costs, and what it offers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGES = {
    "luma_core": REPO,
    "luma_kernels": REPO / "kernels",
    "luma_server": REPO / "server",
    "luma_client": REPO / "client",
}
OPTIONAL = {"triton"}
HEAVY = ["fastapi", "httpx", "luma_kernels", "pydantic", "rich", "triton", "typer", "uvicorn"]

# What torch loads by itself is not luma_core's doing.
LIGHT_IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import luma_core
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"loaded": sorted(loaded), "cuda": torch.cuda.is_initialized()}))
"""


def test_import_of_core_is_light() -> None:
    command = [sys.executable, "-W", "error", "-c", LIGHT_IMPORT]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert [name for name in HEAVY if name in report["loaded"]] == []
    assert report["cuda"] is False


def package_names() -> Iterator[str]:
    for name, root in PACKAGES.items():
        for init in sorted((root / name).rglob("__init__.py")):
            yield ".".join(init.parent.relative_to(root).parts)


def import_or_skip(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{name} needs {error.name}, which is not installed")
        raise


def public_names(module: ModuleType) -> set[str]:
    """What a reader of `dir(module)` would take for its interface."""
    incidental = {"annotations", "TYPE_CHECKING"}
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in incidental
    }


@pytest.mark.parametrize("name", list(package_names()))
def test_all_is_the_public_interface(name: str) -> None:
    module = import_or_skip(name)
    exported = getattr(module, "__all__", [])
    assert [item for item in exported if not hasattr(module, item)] == [], "names nothing"
    assert len(exported) == len(set(exported)), "names something twice"
    assert public_names(module) - set(exported) == set(), "leaves something out"


def test_core_states_its_interface() -> None:
    assert "__version__" in importlib.import_module("luma_core").__all__


def test_command_entry_point_exists() -> None:
    assert callable(importlib.import_module("luma_client.cli").main)
