"""``luma serve`` as a process: says where it is, answers, and stops when it is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from luma_client.cli.app import run
from luma_client.console.server_process import ServerProcess
from luma_core.errors import ServiceError

# Whoever runs the tests in the background of a shell has them ignore interruptions.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from luma_client.cli import main
main()
"""


@contextmanager
def serving(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "serve",
        "--root",
        str(root),
        "--no-auth",
        "--port",
        "0",
    ]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serve_answers_until_it_is_stopped(tmp_path, number, code):
    with serving(tmp_path, "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert set(told) == {"url", "root", "pid"}
        assert httpx.get(f"{told['url']}/healthz", trust_env=False, timeout=60).status_code == 200
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{told['url']}/healthz", trust_env=False, timeout=60)


def test_serve_tells_people_the_address(tmp_path):
    with serving(tmp_path) as process:
        assert process.stdout is not None
        assert f"serving {tmp_path} at http://127.0.0.1:" in process.stdout.readline()


def test_a_port_that_is_taken(tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = run(["serve", "--root", str(tmp_path), "--no-auth", "--port", str(port)])
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.count(f"cannot listen on 127.0.0.1:{port}: Address already in use.") == 1
    assert err.count("error: ") == 1
    assert "attempting" not in err
    assert "Traceback" not in err


def test_somebody_must_be_able_to_use_the_server(tmp_path, capfd):
    assert run(["serve", "--root", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: nobody could use the server: there are no tokens.")
    assert "--no-auth" in err


def test_a_missing_server_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "--root", str(tmp_path)]) == 2
    assert "pip install 'luma-state[server]'" in capsys.readouterr().err


def test_the_log_gets_what_the_server_says(tmp_path):
    with (
        (tmp_path / "log").open("wb") as log,
        ServerProcess(root=str(tmp_path), log=log, more=["--no-auth"]) as server,
    ):
        httpx.get(f"{server.url}/healthz", trust_env=False, timeout=60)
    assert b"healthz" in (tmp_path / "log").read_bytes()


def test_a_server_that_dies_is_an_error(tmp_path):
    with ServerProcess(root=str(tmp_path), more=["--no-auth"]) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServiceError, match="ended with code -9"):
            server.wait()
