"""The client against a real server, and against servers that are wrong in every way."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
import torch

import luma_client
from luma_client import CheckpointInfo, Client, Health, Retries
from luma_core import LUMA, __version__, checkpoint, stats
from luma_core.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    CorruptCheckpointError,
    ServiceError,
    UnsafeNameError,
)
from luma_server import Settings, create_app
from tests.serving import running

BASE = "http://server.test"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    params = {name: torch.nn.Parameter(torch.randn(4, 64)) for name in ("h.0.w", "head", "idle")}
    optimizer = LUMA(params.items())
    for name in ("h.0.w", "head"):
        params[name].grad = torch.randn(4, 64)
    optimizer.step()
    checkpoint.save(root / "gpt" / "7", optimizer=optimizer)
    (root / "gpt" / "bad").mkdir()
    (root / "gpt" / "bad" / "luma.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def url(root) -> Iterator[str]:
    with running(create_app(Settings(root=root, allow_anonymous=True))) as address:
        yield address


@pytest.fixture
def client(url) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def faked(status: int, content: bytes | str, kind: str = "application/json") -> Client:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content, headers={"Content-Type": kind})

    return Client(BASE, transport=httpx.MockTransport(handle), retries=Retries(attempts=1))


def test_health(client) -> None:
    assert client.health() == Health(status="ok", version=__version__)


def test_checkpoints(client, root) -> None:
    good, bad = client.checkpoints()
    manifest = checkpoint.open(root / "gpt" / "7").manifest
    assert isinstance(good, CheckpointInfo)
    assert (good.run, good.step, good.digest) == ("gpt", "7", manifest.digest)
    assert good.state_bytes == manifest.summary.state_bytes
    assert good.error is None
    assert (bad.run, bad.step, bad.digest) == ("gpt", "bad", None)
    assert "luma.json" in bad.error


def test_checkpoint_is_the_manifest(client, root) -> None:
    assert client.checkpoint("gpt", "7") == checkpoint.open(root / "gpt" / "7").manifest


def test_stats_are_equal_to_those_computed_here(client, root) -> None:
    with checkpoint.open(root / "gpt" / "7") as opened:
        assert client.stats("gpt", "7") == stats.compute(opened)
        assert client.stats("gpt", "7", "h.*") == stats.compute(opened, pattern="h.*")
        odd = "a&b=c#d%2f e[!?]*"
        assert client.stats("gpt", "7", odd) == stats.compute(opened, pattern=odd)


def test_the_address_may_end_with_a_slash_or_name_a_folder(url) -> None:
    with Client(f"{url}/") as client:
        assert client.health().status == "ok"
    paths = []

    def handle(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200, json={"items": []})

    with Client("http://host/luma/", transport=httpx.MockTransport(handle)) as client:
        assert client.checkpoints() == []
    assert paths == ["/luma/v1/checkpoints"]


def test_missing_checkpoints(client, url) -> None:
    for ask in (client.checkpoint, client.stats):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint gpt/8") as caught:
            ask("gpt", "8")
        assert url in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", ".x", "x" * 201])
def test_unsafe_names_never_reach_the_server(name) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    with Client(BASE, transport=httpx.MockTransport(handle)) as client:
        for ask in (client.checkpoint, client.stats):
            for pair in ((name, "7"), ("gpt", name)):
                with pytest.raises(UnsafeNameError):
                    ask(*pair)


def test_problems_carry_detail_hint_and_status(client, url) -> None:
    with pytest.raises(ServiceError) as caught:
        client.checkpoint("gpt", "bad")
    assert caught.value.message.startswith(f"{url}/v1/checkpoints/gpt/bad: gpt/bad/luma.json: ")
    assert caught.value.status == 500
    assert "log has more under request" in caught.value.hint
    with pytest.raises(ServiceError, match="at most 512") as caught:
        client.stats("gpt", "7", "x" * 600)
    assert caught.value.status == 422


def test_a_closed_port_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url) as client, pytest.raises(ServiceError, match="cannot connect") as caught:
        client.health()
    assert url in caught.value.message
    assert "luma serve" in caught.value.hint
    assert caught.value.status is None


def test_silence_ends_with_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(url, timeout_seconds=0.2) as client,
            pytest.raises(ServiceError, match=r"no answer within 0\.2 s") as caught,
        ):
            client.health()
    assert url in caught.value.message
    assert "timeout_seconds" in caught.value.hint


def test_a_server_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with (
            Client(
                f"http://127.0.0.1:{listener.getsockname()[1]}", retries=Retries(attempts=1)
            ) as client,
            pytest.raises(ServiceError, match=r"127\.0\.0\.1"),
        ):
            client.health()
        thread.join()


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (200, "<html>hello</html>", "text/html"),
        (200, "", ""),
        (200, "not json", "application/json"),
        (200, "[1]", "application/json"),
        (200, '{"other": 1}', "application/json"),
        (302, "", "text/html"),
        (404, "<html>nothing</html>", "text/html"),
        (404, "{}", "application/json"),
        (500, "oops", "application/problem+json"),
        (502, '{"status": "x"}', "application/problem+json"),
    ],
)
def test_answers_of_other_servers(status, content, kind) -> None:
    asks = [Client.health, Client.checkpoints, lambda client: client.stats("gpt", "7")]
    for ask in asks:
        with faked(status, content, kind) as client, pytest.raises(ServiceError) as caught:
            ask(client)
        assert caught.value.message.startswith(BASE)
        assert "LUMA server" in caught.value.hint
        assert caught.value.status == status


def test_a_manifest_that_was_changed_on_the_way(root) -> None:
    content = (root / "gpt" / "7" / "luma.json").read_bytes()
    with faked(200, content) as client:
        assert client.checkpoint("gpt", "7").algorithm == "luma"
    for changed in (content.replace(b'"step": 1', b'"step": 2', 1), content[:-2], b"{}", b"x"):
        with (
            faked(200, changed) as client,
            pytest.raises(CorruptCheckpointError, match=f"^{BASE}/v1/checkpoints/gpt/7: "),
        ):
            client.checkpoint("gpt", "7")


def test_unknown_fields_of_a_newer_server_are_ignored(root) -> None:
    with checkpoint.open(root / "gpt" / "7") as opened:
        expected = stats.compute(opened)
    answer = asdict(expected)
    answer["new"] = 1
    answer["total"]["new"] = {"more": []}
    answer["parameters"][0]["moments"][0]["value"]["new"] = None
    with faked(200, json.dumps(answer)) as client:
        assert client.stats("gpt", "7") == expected
    with faked(
        200, '{"items": [{"run": "a", "step": "1", "new": 3}], "next_cursor": null, "new": 1}'
    ) as client:
        assert client.checkpoints() == [CheckpointInfo(run="a", step="1")]


@pytest.mark.parametrize(
    "base", ["", "localhost:80", "ftp://x", "http://", "file:///etc", "http://a?b=1", "http://[::"]
)
def test_addresses_that_cannot_work(base) -> None:
    with pytest.raises(ConfigurationError, match="base_url="):
        Client(base)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_timeouts_that_cannot_work(seconds) -> None:
    with pytest.raises(ConfigurationError, match="timeout_seconds="):
        Client(BASE, timeout_seconds=seconds)


def test_proxies_of_the_environment_do_not_take_loopback_requests(url, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, closed)
    with Client(url) as client:
        assert client.health().status == "ok"


def test_exported_names() -> None:
    names = ["AsyncClient", "CheckpointInfo", "Client", "Health"]
    assert luma_client.__all__ == [*names, "LumaFileSystem", "LumaStore", "Retries"]
    assert set(luma_client.__all__) <= set(dir(luma_client))
    with pytest.raises(AttributeError, match="nothing"):
        _ = luma_client.nothing


def test_importing_the_package_is_light() -> None:
    code = "import sys, luma_client; print(*{'torch', 'httpx', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


_NO_MORE = httpx.Response(416, headers={"Content-Range": "bytes */5"})


@pytest.mark.parametrize("given", ["result.pt", "~/result.pt"])
def test_a_result_goes_where_it_was_to_go(tmp_path, monkeypatch, given) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Range": "bytes 0-4/5", "ETag": '"1"'}
        first = request.headers["Range"].startswith("bytes=0-")
        return httpx.Response(206, content=b"whole", headers=headers) if first else _NO_MORE

    (tmp_path / "after").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with Client(BASE, transport=httpx.MockTransport(handle)) as client:
        # As a client that is awaited does: the call makes the steps, which run later.
        steps = Client.save_job_result.steps(client, "0" * 32, given)
        monkeypatch.chdir(tmp_path / "after")
        client.run(steps)
    assert (tmp_path / "result.pt").read_bytes() == b"whole"
    assert not any((tmp_path / "after").iterdir())
