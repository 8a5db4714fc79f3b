"""The documentation site builds, and the programs of its pages run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luma_core import errors

MODEL = """
import json
from pathlib import Path
import torch
from torch import nn
import luma_core
from luma_core import LUMA, checkpoint
from luma_core.checkpoint import CheckpointManager

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 64), nn.Linear(64, 16))
optimizer = LUMA(model.named_parameters(), lr=1e-3)
loss = model(torch.randint(16, (8, 4))).square().mean()
loss.backward()
optimizer.step()
url = "run/here"
"""

PAGES = {
    "quickstart.md": "",
    "any-optimizer.md": MODEL,
    "adam-mini.md": MODEL
    + """
def make_a(copied):
    return torch.optim.AdamW(copied.parameters())
make_b = make_a
""",
    "convert.md": MODEL,
    "lamb.md": MODEL,
    "lion.md": MODEL,
    "adam-family.md": MODEL,
    "muon.md": MODEL
    + """
named = list(model.named_parameters())
matrices, others = [p for p in named if p[1].ndim == 2], [p for p in named if p[1].ndim < 2]
muon = torch.optim.Muon([param for _, param in matrices])
adamw = torch.optim.AdamW([param for _, param in others])
muon.step(), adamw.step()
theirs = luma_core.Muon(named)
theirs.step()
state_dict = theirs.export_muon_state("moonlight")
""",
    "optimizers.md": MODEL
    + "params = list(model.named_parameters()); embeddings, matrices = params[:1], params[1:]\n",
    "storage.md": MODEL
    + """
step, extra = 3, None
checkpoint.save("run/00000010", optimizer=optimizer)
import pytest
class MyStore:
    pass
""",
    "turbo-adam.md": MODEL,
}
"""Pages whose blocks of Python run one after the other, and what they take for granted."""

ELSEWHERE = {
    "checkpoint-format.md": "tests/core/checkpoint/format/test_format_document.py",
    "client.md": "tests/client/test_client_document.py",
    "extending.md": "tests/packaging/test_extending.py",
    "pipeline-and-experts.md": "tests/distributed/cases/stage_cases.py",
}
"""Pages whose blocks other tests run."""

FRAGMENTS = {
    "distributed.md": "parts of programs of several processes; examples/ has whole ones",
    "offload.md": "needs a GPU",
}
"""Pages whose blocks are only compiled, and why."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_page_with_programs_is_looked_at(repo: Path) -> None:
    pages = {str(p.relative_to(repo / "docs")) for p in (repo / "docs").rglob("*.md") if blocks(p)}
    assert pages == {*PAGES, *ELSEWHERE, *FRAGMENTS}
    for test in ELSEWHERE.values():
        assert "docs" in (repo / test).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_its_program_runs(
    page: str, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGES[page] + "\n".join(blocks(repo / "docs" / page)).replace("s3://bucket", "bucket")
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(text, page, "exec"), names)


@pytest.mark.parametrize("page", FRAGMENTS)
def test_its_fragments_are_python(page: str, repo: Path) -> None:
    for block in blocks(repo / "docs" / page):
        compile(block.replace("...\n", "\n"), page, "exec")


def test_the_errors_of_troubleshooting_exist(repo: Path) -> None:
    text = (repo / "docs" / "troubleshooting.md").read_text()
    named = set(re.findall(r"`(\w+Error)\b", text))
    assert len(named) > 8
    assert [name for name in named if not hasattr(errors, name)] == []


@pytest.mark.timeout(300)
def test_the_site_builds_without_warnings(repo: Path, tmp_path: Path) -> None:
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "dirhtml"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), "docs", str(tmp_path / "site")],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "https://" not in re.sub(r'(href|content)="https://[^"]*"', "", home)
    for page in (repo / "docs").rglob("*.md"):
        path = page.relative_to(repo / "docs").with_suffix("")
        folder = path.parent if path.name == "index" else path
        assert (tmp_path / "site" / folder / "index.html").exists(), page
