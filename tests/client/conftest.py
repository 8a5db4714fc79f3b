"""Shared by the tests of the client: the command line, and servers on real sockets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # noqa: F401 - loaded first, it learns of luma:// from the package itself
import pytest

from luma_client.cli import app
from luma_core.checkpoint.storage.local import LocalStore
from luma_server import Settings, create_app
from tests.serving import running

from .transfers import saved


@pytest.fixture
def luma(capsys):
    """Runs a command in this process; gives exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = app.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch, tmp_path_factory):
    """Keeps the tokens of whoever runs the tests out of them."""
    monkeypatch.delenv("LUMA_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


class Served:
    """A server that runs.

    Attributes:
        root: its folder.
        address: ``http://127.0.0.1:port``.
        url: ``luma://127.0.0.1:port``.
    """

    def __init__(self, root: Path, address: str) -> None:
        self.root = root
        self.address = address
        self.url = address.replace("http://", "luma://")


@contextmanager
def serve(root: Path, **settings: Any) -> Iterator[Served]:
    root.mkdir(exist_ok=True)
    options = {"allow_anonymous": True, "part_bytes": 1024, **settings}
    with running(create_app(Settings(root=root, **options))) as address:
        yield Served(root, address)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    """A server without tokens that takes files in parts of 1 KiB."""
    with serve(tmp_path_factory.mktemp("server") / "root") as served:
        yield served


@pytest.fixture
def serving() -> Callable[..., Any]:
    """Starts a server of its own: ``with serving(root, **settings) as served``."""
    return serve


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LocalStore:
    """A checkpoint of several files that is nowhere else."""
    return saved(tmp_path_factory.mktemp("source"), model=True)


_runs = itertools.count()


@pytest.fixture
def run() -> str:
    """A run that no other test uses."""
    return f"run-{next(_runs)}"
