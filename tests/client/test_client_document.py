"""docs/client.md names every method and default of the clients, and its programs run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luma_client import AsyncClient, Client, Retries
from luma_client.downloads import PART_BYTES
from luma_client.location import DEFAULT_PORT
from luma_client.operation import Operation
from luma_client.staging import MEMORY_BYTES
from luma_client.uploads import LANES
from luma_core import checkpoint
from luma_core.testing.store import trained

DOCUMENT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()


def operations(kind: type) -> set[str]:
    names = (name for name in dir(kind) if not name.startswith("_"))
    return {name for name in names if isinstance(getattr(kind, name), Operation)}


def test_every_method_is_named_and_both_clients_have_it() -> None:
    rows = "".join(re.findall(r"^\| (`\w+\(.*?) \|", DOCUMENT, re.M))
    named = set(re.findall(r"`(\w+)\(", rows))
    assert named == operations(Client) == operations(AsyncClient)


def test_numbers() -> None:
    assert f"`{Retries()}`" in DOCUMENT
    assert f"HTTP on port {DEFAULT_PORT}" in DOCUMENT
    assert f"larger than {MEMORY_BYTES >> 20} MiB" in DOCUMENT
    assert f"a download {LANES * PART_BYTES >> 20} MiB" in DOCUMENT
    assert LANES == 4
    assert "(300)" in DOCUMENT
    with Client("http://h") as client:
        assert client.endpoint.timeout_seconds == 300


def test_the_programs_run(server, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained(1)
    program = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.S))
    assert "127.0.0.1:8000" in program
    program = program.replace("127.0.0.1:8000", server.address.removeprefix("http://"))
    exec(compile(program, "client.md", "exec"), {"model": model, "optimizer": optimizer})
    assert checkpoint.verify("back").ok
    with Client(server.address) as client:
        assert client.info("gpt2", "copy").pinned
