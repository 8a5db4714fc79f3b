"""Files come whole and in ranges, byte for byte, whatever serves them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
import uvicorn

from luma_core import checkpoint
from luma_server import Settings, create_app
from luma_server.http.transfer import Span, parse_range


@pytest.fixture
def shard(root) -> Path:
    return next((root / "gpt" / "9").glob("*.safetensors"))


def test_the_files_of_a_checkpoint(http, root, shard) -> None:
    items = http.get("/v1/checkpoints/gpt/9/files").json()["items"]
    data = shard.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert items == [{"name": shard.name, "size_bytes": len(data), "sha256": digest}]
    answer = http.get(f"/v1/checkpoints/gpt/9/files/{shard.name}")
    assert answer.content == data
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Length"] == str(len(data))
    manifest = http.get("/v1/checkpoints/gpt/9/files/luma.json")
    assert manifest.content == (root / "gpt" / "9" / "luma.json").read_bytes()


@pytest.mark.parametrize("name", ["", "/files/{name}", "/files/luma.json"])
def test_head_has_the_headers_of_get(http, shard, name) -> None:
    path = "/v1/checkpoints/gpt/9" + name.format(name=shard.name)
    get, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for header in ("ETag", "Content-Length", "Content-Type"):
        assert head.headers[header] == get.headers[header]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, None),
        ("bytes=-7", -7, None),
        ("bytes=-999999", 0, None),
        ("bytes=5-999999", 5, None),
    ],
)
def test_ranges(http, shard, asked, start, stop) -> None:
    data = shard.read_bytes()
    path = f"/v1/checkpoints/gpt/9/files/{shard.name}"
    answer = http.get(path, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == data[start:stop]
    first = start if start >= 0 else len(data) + start
    last = first + len(answer.content) - 1
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(data)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "lines=1-2", "bytes=5-3", "bytes=-", "x"])
def test_ranges_that_are_not_understood_give_the_whole(http, shard, asked) -> None:
    path = f"/v1/checkpoints/gpt/9/files/{shard.name}"
    answer = http.get(path, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, shard.read_bytes())


@pytest.mark.parametrize("asked", ["bytes=999999-", "bytes=-0"])
def test_ranges_behind_the_end(http, shard, check_problem, asked) -> None:
    path = f"/v1/checkpoints/gpt/9/files/{shard.name}"
    answer = http.get(path, headers={"Range": asked})
    check_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{shard.stat().st_size}"


def test_conditions(http, root, shard, optimizer) -> None:
    path = f"/v1/checkpoints/gpt/9/files/{shard.name}"
    etag = http.get(path).headers["ETag"]
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304
    part = {"Range": "bytes=0-9"}
    assert http.get(path, headers={**part, "If-Range": etag}).status_code == 206
    assert http.get(path, headers={**part, "If-Range": f"W/{etag}"}).status_code == 200
    checkpoint.save(root / "gpt" / "9", optimizer=optimizer(9), overwrite=True)
    name = next((root / "gpt" / "9").glob("*.safetensors")).name
    changed = http.get(path.replace(shard.name, name), headers={**part, "If-Range": etag})
    assert (changed.status_code, changed.headers["ETag"] == etag) == (200, False)


def test_files_that_are_not_the_checkpoints(http, root, shard, check_problem) -> None:
    (root / "gpt" / "9" / "stray.bin").write_bytes(b"stray")
    for name in ("stray.bin", "missing.bin", "x" * 200):
        answer = http.get(f"/v1/checkpoints/gpt/9/files/{name}")
        check_problem(answer, 404, "file_not_found")
    for name in ("%2e%2e", ".hidden", "a b", "x" * 201, "é"):
        check_problem(http.get(f"/v1/checkpoints/gpt/9/files/{name}"), 400, "unsafe_name")
    shard.unlink()
    answer = http.get(f"/v1/checkpoints/gpt/9/files/{shard.name}")
    assert answer.json()["code"] in ("checkpoint_not_found", "file_not_found")


def test_a_shard_that_got_shorter(http, shard, check_problem) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])
    answer = http.get(f"/v1/checkpoints/gpt/9/files/{shard.name}")
    check_problem(answer, 404, "file_not_found")


def test_a_shard_that_leads_out_of_the_root(http, root, shard, check_problem) -> None:
    outside = root.parent / "secret"
    outside.write_bytes(shard.read_bytes())
    http.get(f"/v1/checkpoints/gpt/9/files/{shard.name}")
    shard.unlink()
    shard.symlink_to(outside)
    answer = http.get(f"/v1/checkpoints/gpt/9/files/{shard.name}")
    check_problem(answer, 404, "checkpoint_not_found")


def test_many_files_on_one_connection(http, shard) -> None:
    data = shard.read_bytes()
    path = f"/v1/checkpoints/gpt/9/files/{shard.name}"
    with httpx.Client(base_url=http.base_url, trust_env=False, timeout=60) as one:
        for start in range(0, 200, 10):
            part = one.get(path, headers={"Range": f"bytes={start}-{start + 9}"})
            assert part.content == data[start : start + 10]
            assert one.get("/healthz").status_code == 200


def test_servers_without_zero_copy_send_the_same(root, shard) -> None:
    import socket
    import threading
    import time

    config = uvicorn.Config(
        create_app(Settings(root=root, allow_anonymous=True)),
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            path = f"{url}/v1/checkpoints/gpt/9/files/{shard.name}"
            assert httpx.get(path, trust_env=False, timeout=60).content == shard.read_bytes()
            part = httpx.get(path, headers={"Range": "bytes=3-9"}, trust_env=False, timeout=60)
            assert part.content == shard.read_bytes()[3:10]
        finally:
            server.should_exit = True
            thread.join()


def test_a_client_that_goes_away_leaves_no_file_open(root, serving, optimizer) -> None:
    import socket
    import time

    big = root / "gpt" / "9"
    shard = next(big.glob("*.safetensors"))
    before = shard.stat().st_size
    with serving(create_app(Settings(root=root, allow_anonymous=True))) as url:
        port = int(url.rpartition(":")[2])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                request = f"GET /v1/checkpoints/gpt/9/files/{shard.name} HTTP/1.1\r\n"
                raw.sendall(f"{request}Host: localhost\r\n\r\n".encode())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            links = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
            if shard.resolve() not in links:
                break
            time.sleep(0.02)
        else:
            pytest.fail("a file stayed open")
    assert shard.stat().st_size == before


def test_ranges_are_parsed_by_the_letter() -> None:
    assert parse_range(None, 10) is None
    assert parse_range("bytes=2-4", 10) == Span(2, 3)
    assert parse_range("bytes=-3", 10) == Span(7, 3)
    assert parse_range("bytes=9-", 10) == Span(9, 1)
    assert parse_range("bytes=" + "9" * 30 + "-", 10) is None
