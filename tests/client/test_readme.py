"""README.md keeps its word: its program runs, its commands work, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from luma_client.cli.app import app

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
PROGRAM = "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"^(luma .*?) *(?:#.*)?$", README, re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program ran."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(PROGRAM, "README.md", "exec"), {})
    return folder


def test_the_commands_work_after_the_program(folder: Path, luma, server, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    shown = {command.split()[1] for command in COMMANDS}
    assert shown == {"inspect", "stats", "verify", "convert", "diff", "partition", "serve", "push"}
    for command in COMMANDS:
        if "luma serve" not in command:
            told = command.replace("luma://127.0.0.1:8000", server.url)
            code, out, err = luma(*shlex.split(told)[1:])
            assert (code, err) == (0, "")
            assert out


TOLD_APART = "\nnow: checkpoint.Manifest = manager.save(5, optimizer=optimizer)\n"
"""A manifest and a handle are told apart, so that nobody needs a cast or an ignore."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_program_is_typed(tmp_path: Path, checker: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + TOLD_APART)
    cache = f"--cache-dir={REPO / '.mypy_cache'}"  # that of `make lint`, with its options
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(REPO), str(REPO / "kernels")]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = {
        "mypy": ["mypy", f"--config-file={REPO / 'pyproject.toml'}", "--strict", cache],
        "pyright": ["basedpyright", f"--project={tmp_path}", f"--pythonpath={sys.executable}"],
    }[checker]
    run = [sys.executable, "-m", *command]
    run += [] if checker == "pyright" else [str(program)]
    found = subprocess.run(run, cwd=REPO, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_only_known_commands_are_named() -> None:
    known = {command.name for command in app.registered_commands}
    assert set(re.findall(r"`luma (\w+)", README)) <= known
    assert typer.main.get_command(app).name == "luma"


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(p.name for p in (REPO / "docs").glob("*.md"))]
)
def test_links_lead_to_files(page: str) -> None:
    path = REPO / page if page == "README.md" else REPO / "docs" / page
    targets = re.findall(r"\]\(([^)#]+)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []
