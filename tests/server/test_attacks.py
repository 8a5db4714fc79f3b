"""What hostile or broken clients, stores and other servers can and cannot do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

from luma_core import checkpoint
from luma_core.checkpoint.storage.local import LocalStore
from luma_server import create_app


@contextlib.contextmanager
def server_process(root: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "luma_server", "--root", str(root), "--no-auth", *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = process.stdout.readline()
        yield process, re.findall(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.communicate()


def raw(http: httpx.Client, data: bytes, *, half: bool = False, seconds: float = 20) -> bytes:
    """Send bytes as they are; return all that comes back."""
    address = (http.base_url.host, http.base_url.port)
    with socket.create_connection(address, timeout=seconds) as connection:
        connection.sendall(data)
        if half:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


NAMES = [
    "..", "%2e%2e", "%2E%2e", "..%00", "%00", "%c0%ae%c0%ae", "%e2%80%a6", "x" * 201, "con:", "C:",
    "%20", "a%0d%0ab", "~", "-rf", ".luma", "%ff", "luma.json%00.bin", "*", "%25%32%65",
]  # fmt: skip


PATHS = [
    "/v1/checkpoints/{}/9",
    "/v1/checkpoints/gpt/{}",
    "/v1/checkpoints/gpt/{}/stats",
    "/v1/checkpoints/gpt/9/files/{}",
    "/v1/runs/{}/series",
    "/v1/uploads/{}",
    "/v1/jobs/{}/result",
]


def test_names_that_lead_elsewhere(uploader, root) -> None:
    for path in (pattern.format(name) for pattern in PATHS for name in NAMES):
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = raw(uploader.http, request.encode())
        assert answer.split(b" ")[1] in (b"400", b"404"), path
        assert b"application/problem+json" in answer
        assert str(root).encode() not in answer
        assert b"Traceback" not in answer


def part_request(session: dict, name: str, length: int) -> bytes:
    return (
        f"PUT /v1/uploads/{session['id']}/files/{name}/parts/1 HTTP/1.1\r\n"
        f"Host: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n"
        f"Content-Digest: sha-256=:{'A' * 43}=:\r\n\r\n"
    ).encode()


def received(http: httpx.Client, session: dict) -> list[list[int]]:
    files = http.get(f"/v1/uploads/{session['id']}").json()["files"]
    return [file["received"] for file in files]


def test_lengths_that_lie(uploader, source) -> None:
    session = uploader.begin(source, "new", "1")
    name = session["files"][0]["name"]
    short = raw(uploader.http, part_request(session, name, 1024) + bytes(100), half=True)
    assert short == b"" or short.split(b" ")[1] == b"400"
    long = raw(uploader.http, part_request(session, name, 1024) + bytes(5000))
    assert long.split(b" ")[1] in (b"400", b"422")
    for length in ("-1", "1e3", "99999999999999999999", "1, 2", "0x10"):
        head = part_request(session, name, 0).replace(b"Length: 0", f"Length: {length}".encode())
        assert raw(uploader.http, head).split(b" ")[1] in (b"400", b"413")
    assert received(uploader.http, session) == [[], []]
    assert uploader.http.get("/healthz").status_code == 200


def test_slow_senders_are_told_and_leave_nothing(settings, serving, uploader_of, source) -> None:
    app = create_app(replace(settings, idle_seconds=0.3))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        uploader = uploader_of(http)
        session = uploader.begin(source, "new", "1")
        name = session["files"][0]["name"]
        answer = raw(http, part_request(session, name, 1024) + bytes(10))
        assert answer.split(b" ")[1] == b"408"
        assert b"upload_too_slow" in answer
        assert raw(http, b"GET /healthz HTTP/1.1\r\nHost: loc") == b""
        assert raw(http, b"") == b""
        uploader.send(session, source)
        assert uploader.commit(session).status_code == 201


def test_requests_that_are_no_http(uploader) -> None:
    for text in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
        answer = raw(uploader.http, text)
        assert answer.split(b" ")[1] == b"400"
        assert b"bad_request" in answer
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Bomb: "
    assert raw(uploader.http, head + b"x" * 20_000).split(b" ")[1] == b"400"


def test_bodies_that_are_too_long_or_too_deep(uploader, check_problem) -> None:
    http = uploader.http
    path = "/v1/checkpoints/gpt/9/labels"
    check_problem(http.put(path, content=b"x" * 70_000), 413, "too_large")
    check_problem(http.put(path, content=iter([b"x" * 70_000])), 413, "too_large")
    headers = {"Content-Type": "application/json"}
    for body in (b"[" * 60_000, b'{"labels": ' * 5000, b"\xff\xfe", b"", b"1e999999", b"NaN"):
        answer = http.put(path, content=body, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_aborted_uploads_leave_the_session_as_it_was(uploader, source) -> None:
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)
    before = received(uploader.http, session)
    name = session["files"][0]["name"]
    for _ in range(5):
        address = (uploader.http.base_url.host, uploader.http.base_url.port)
        with socket.create_connection(address) as connection:
            connection.sendall(part_request(session, name, 1024) + bytes(500))
    deadline = time.monotonic() + 10
    while uploader.commit(session).status_code == 409 and time.monotonic() < deadline:
        for number, data in uploader.parts(source, name, 1024):
            uploader.put(session, name, number, data)
    assert before
    state = uploader.http.get(f"/v1/uploads/{session['id']}").json()
    assert state["state"] == "committed"


def test_a_server_that_is_killed_during_a_push(root, source, uploader_of) -> None:
    with server_process(root) as (process, url):
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            body = {"run": "new", "step": "1", "manifest": (source / "luma.json").read_text()}
            session = http.post("/v1/uploads", json=body).json()
            name = session["files"][0]["name"]
            data = (source / name).read_bytes()
            assert uploader_of(http).put(session, name, 1, data).status_code == 204
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (root / "new").exists()
    with (
        server_process(root) as (_, url),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
    ):
        found = http.get(f"/v1/uploads/{session['id']}").json()
        assert [file["received"] for file in found["files"]] == [[1], []]
        uploader = uploader_of(http)
        uploader.send(found, source)
        assert uploader.commit(session).status_code == 201
        assert checkpoint.verify(root / "new" / "1").ok


def test_three_servers_over_one_root_commit_one_checkpoint(
    root, source, optimizer, uploader_of
) -> None:
    sources = [source]
    for seed in (31, 32):
        sources.append(source.parent / f"source-{seed}")
        checkpoint.save(sources[-1], optimizer=optimizer(seed), max_shard_bytes=3000)
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(server_process(root))[1] for _ in range(3)]

        def push(number: int) -> list[int]:
            statuses = []
            with httpx.Client(base_url=urls[number], trust_env=False, timeout=60) as http:
                uploader = uploader_of(http)
                for step in range(5):
                    session = uploader.begin(sources[number], "race", str(step))
                    uploader.send(session, sources[number])
                    barrier.wait()
                    answer = uploader.commit(session)
                    while answer.json().get("code") == "commit_in_progress":
                        answer = uploader.commit(session)
                    statuses.append(answer.status_code)
                    barrier.wait()
            return statuses

        barrier = threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(push, range(3)))
    assert [sorted(column) for column in zip(*results, strict=True)] == [[201, 409, 409]] * 5
    for step in range(5):
        assert checkpoint.verify(root / "race" / str(step)).ok
        winner = next(i for i in range(3) if results[i][step] == 201)
        content = (root / "race" / str(step) / "luma.json").read_bytes()
        assert content == (sources[winner] / "luma.json").read_bytes()


def test_a_store_that_fails_for_a_while(uploader, root, source, monkeypatch, check_problem) -> None:
    session = uploader.begin(source, "new", "1")
    uploader.send(session, source)

    def fail(*_, **__):
        raise OSError(5, f"Input/output error: {root}")

    for method in ("write", "version", "read_range"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, method, fail)
            answer = uploader.commit(session)
            assert answer.status_code == 503
            assert str(root) not in answer.text
            assert "Retry-After" in answer.headers
    check_problem(uploader.http.get("/v1/checkpoints/new/1"), 404, "checkpoint_not_found")
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "version", fail)
        check_problem(uploader.http.get("/readyz"), 503, "not_ready")
        assert uploader.http.get("/healthz").status_code == 200
    assert uploader.http.get("/readyz").status_code == 200
    assert uploader.commit(session).status_code == 201
    assert checkpoint.verify(root / "new" / "1").ok


def test_a_store_without_room(uploader, source, monkeypatch, check_problem) -> None:
    session = uploader.begin(source, "new", "1")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        name = session["files"][0]["name"]
        answer = uploader.put(session, name, 1, (source / name).read_bytes()[:1024])
        check_problem(answer, 507, "store_full")
    uploader.send(session, source)
    assert uploader.commit(session).status_code == 201


def test_deletion_and_upload_at_the_same_time_leave_all_or_nothing(uploader, root, source) -> None:
    for _ in range(5):
        session = uploader.begin(source, "new", "1", overwrite=True)
        uploader.send(session, source)
        with ThreadPoolExecutor(2) as pool:
            answers = [
                pool.submit(uploader.commit, session),
                pool.submit(uploader.http.delete, "/v1/checkpoints/new/1"),
            ]
        assert all(answer.result().status_code in (201, 204, 404, 409) for answer in answers)
        if (root / "new" / "1" / "luma.json").exists():
            assert checkpoint.verify(root / "new" / "1").ok


def test_writes_are_told_to_the_audit_log(uploader, source, caplog) -> None:
    caplog.set_level(logging.INFO, "luma_server.audit")
    uploader.push(source, "new", "1")
    uploader.http.put("/v1/checkpoints/new/1/pin")
    uploader.http.delete("/v1/checkpoints/new/1/pin")
    uploader.http.put("/v1/checkpoints/new/1/labels", json={"labels": {"a": "b"}})
    answer = uploader.http.delete("/v1/checkpoints/new/1")
    records = [record for record in caplog.records if record.name == "luma_server.audit"]
    events = [record.event for record in records]
    assert events == ["upload", "commit", "pin", "unpin", "label", "delete"]
    assert records[-1].request_id == answer.headers["X-Request-ID"]
    assert records[-1].facts.items() >= {"run": "new", "step": "1"}.items()


def test_metrics_count(uploader, source) -> None:
    uploader.push(source, "new", "1")
    uploader.http.get("/v1/checkpoints/nope/1")
    uploader.http.get("/secret-name")
    text = uploader.http.get("/metrics").text
    route = "/v1/checkpoints/{run}/{step}"
    assert f'luma_requests_total{{method="GET",route="{route}",status="404"}} 1.0' in text
    size = sum(path.stat().st_size for path in source.iterdir() if path.suffix == ".safetensors")
    count = re.search(r"^luma_received_bytes_total (\S+)", text, re.M)
    assert count
    assert float(count[1]) > size
    assert "secret-name" not in text
    assert "nope" not in text
    assert 'luma_uploads{state="open"} 0.0' in text


def test_metrics_tell_of_the_store(uploader, source) -> None:
    uploader.push(source, "new", "1")
    uploader.http.get("/readyz")
    uploader.http.get("/v1/checkpoints")
    uploader.http.delete("/v1/checkpoints/new/1")
    text = uploader.http.get("/metrics").text
    for operation in ("look", "list", "commit", "delete"):
        assert f'luma_store_seconds_count{{operation="{operation}"}} 1.0' in text
