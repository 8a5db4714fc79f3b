"""docs/extending.md: the files that it names are there, and its suites pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = "docs/extending.md"


def test_every_path_is_there(repo: Path) -> None:
    text = (repo / DOCUMENT).read_text()
    named = re.findall(r"`((?:luma_core|kernels|tests)/[^`]*)`", text)
    assert len(named) > 15
    assert [path for path in named if not (repo / path).exists()] == []


def test_its_suites_pass(repo: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repo / DOCUMENT).read_text(), re.DOTALL)
    suites = [block for block in blocks if "luma_core.testing" in block]
    assert len(suites) == 2
    for index, suite in enumerate(suites):
        (tmp_path / f"test_suite_{index}.py").write_text(suite)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=repo,
    )
    assert done.returncode == 0, done.stdout
