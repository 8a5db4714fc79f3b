"""The server as a process: its one line, its exit codes, its log, its end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from luma_server.__main__ import main
from luma_server.http.tokens import create_token


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "luma_server", *map(str, arguments)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_prints_one_line_serves_and_stops_cleanly(root, how) -> None:
    with process("--root", root, "--port", 0, "--no-auth") as server:
        line = server.stdout.readline()
        found = re.fullmatch(r"LUMA server listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert found
        answer = httpx.get(
            f"{found[1]}/v1/checkpoints/gpt/9/stats",
            headers={"X-Request-ID": "mine"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200
        server.send_signal(how)
        rest, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert rest == ""
    entries = [json.loads(line) for line in log.splitlines()]
    request = next(entry for entry in entries if entry.get("request_id") == "mine")
    assert request.items() >= {"method": "GET", "status": 200, "level": "info"}.items()
    assert request["path"] == "/v1/checkpoints/gpt/9/stats"
    assert not [entry for entry in entries if entry["level"] in ("warning", "error")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "{tmp}/missing"], "error: root '{tmp}/missing' does not exist."),
        (["--root", "{tmp}/file"], "error: root '{tmp}/file' is not a folder."),
        (["--root", "{tmp}", "--port", "70000"], "error: port=70000 must be from 0 to 65535."),
        (["--root", "{tmp}", "--host", "0.0.0.0"], "error: host='0.0.0.0' can be reached from"),
        (["--root", "{tmp}", "--host", "0.0.0.0", "--no-auth"], "error: host='0.0.0.0' can be"),
        (
            ["--root", "{tmp}"],
            "error: nobody could use the server: there are no tokens.",
        ),
        (["--root", "nosuch://x/y", "--no-auth"], "error: 'nosuch://x/y': no store for 'nosuch'"),
        (
            ["--root", "{tmp}", "--port", "{taken}", "--no-auth"],
            "error: cannot listen on 127.0.0.1:{taken}: ",
        ),
    ],
)
def test_arguments_that_cannot_work(tmp_path, capsys, arguments, message) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"tmp": tmp_path, "taken": taken.getsockname()[1]}
        assert main([text.format(**known) for text in arguments]) == 2
    out, log = capsys.readouterr()
    assert out == ""
    (line,) = log.splitlines()
    assert line.startswith(message.format(**known))


def test_a_missing_root_ends_the_process_with_code_2(tmp_path) -> None:
    with process("--root", tmp_path / "missing") as server:
        out, log = server.communicate(timeout=60)
    assert (server.returncode, out) == (2, "")
    assert log.count("\n") == 1


def test_other_addresses_than_loopback_want_tokens(root, tmp_path) -> None:
    tokens = tmp_path / "tokens.json"
    _, token = create_token(tokens, name="me")
    with process("--root", root, "--host", "0.0.0.0", "--tokens-file", tokens) as server:
        line = server.stdout.readline()
        assert line.startswith("LUMA server listening on http://0.0.0.0:")
        url = line.split()[-1].replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/v1/checkpoints").status_code == 401
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/v1/checkpoints", headers=headers).status_code == 200
