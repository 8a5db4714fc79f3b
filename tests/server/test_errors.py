"""Every error has the same body, tells nothing about the machine, and nothing outside is read."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import httpx
import pytest

from luma_core import stats
from luma_core.errors import ConfigurationError
from luma_server import Settings, create_app
from luma_server.catalog.place import Root
from luma_server.http.tokens import create_token


@pytest.mark.parametrize("path", ["/runs/", "/x", "/v1", "/v1/checkpoints/", "/v1/checkpoints/gpt"])
def test_routes_that_do_not_exist(check_problem, http, path) -> None:
    check_problem(http.get(path), 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/healthz", "/v1/checkpoints", "/v1/checkpoints/gpt/9/stats"])
def test_methods_that_are_not_supported(check_problem, http, method, path) -> None:
    response = http.request(method, path)
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET"


@pytest.mark.parametrize("rest", ["", "/stats"])
def test_checkpoints_that_do_not_exist(check_problem, http, root, rest) -> None:
    (root / "gpt" / "11").mkdir()
    for place in ("gpt/11", "gpt/404", "none/1", "gpt.x/9"):
        body = check_problem(
            http.get(f"/v1/checkpoints/{place}{rest}"), 404, "checkpoint_not_found"
        )
        assert place in str(body["detail"])


def test_invalid_queries(check_problem, http) -> None:
    response = http.get("/v1/checkpoints/gpt/9/stats", params={"param": "x" * 513})
    body = check_problem(response, 422, "invalid_request")
    assert "param" in str(body["detail"])


@pytest.mark.parametrize("rest", ["", "/stats"])
@pytest.mark.parametrize(
    "place",
    ["%2e%2e/gpt", "gpt/%2e%2e", ".hidden/9", "gpt/-9", "gpt/9~", "a" * 201 + "/9", "gpt/%09"],
)
def test_unsafe_names(check_problem, http, place, rest) -> None:
    check_problem(http.get(f"/v1/checkpoints/{place}{rest}"), 400, "unsafe_name")


@pytest.mark.parametrize(
    "path",
    [
        "gpt%2f9/stats",
        "gpt/9%2Fstats",
        "..%2f..%2fetc/passwd",
        "gpt/..%5c..%5cx",
        "gpt/9%00",
        "%2fetc/passwd",
    ],
)
def test_encoded_separators_are_refused(check_problem, http, path) -> None:
    check_problem(http.get(f"/v1/checkpoints/{path}"), 400, "unsafe_name")


def test_dots_in_a_raw_request_line_lead_nowhere(http, root) -> None:
    checkpoint_outside = root.parent / "outside" / "1"
    shutil.copytree(root / "gpt" / "9", checkpoint_outside)
    for path in ("/v1/checkpoints/../outside/1", "/v1/checkpoints/../../outside/1", "//etc/passwd"):
        with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
        assert answer.split(b" ")[1] in (b"400", b"404")
        assert b"application/problem+json" in answer


@pytest.mark.parametrize("link", ["run", "step", "manifest", "shard"])
def test_links_that_leave_the_root_are_not_followed(check_problem, http, root, link) -> None:
    outside = root.parent / "outside"
    shutil.copytree(root / "gpt", outside)
    shard = next(outside.glob("9/*.safetensors")).name
    inner = {
        "run": root / "gpt",
        "step": root / "gpt" / "9",
        "manifest": root / "gpt" / "9" / "luma.json",
        "shard": root / "gpt" / "9" / shard,
    }[link]
    target = outside / inner.relative_to(root / "gpt")
    shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
    inner.symlink_to(target)
    assert inner.exists()
    for rest in ("", "/stats"):
        response = http.get(f"/v1/checkpoints/gpt/9{rest}")
        check_problem(response, 404, "checkpoint_not_found")
    entries = http.get("/v1/checkpoints").json()["items"]
    assert ("gpt", "9") not in [(entry["run"], entry["step"]) for entry in entries]


def test_links_inside_the_root_work_and_loops_do_not_break_it(check_problem, http, root) -> None:
    (root / "gpt" / "latest").symlink_to(root / "gpt" / "10")
    (root / "gpt" / "loop").symlink_to(root / "gpt" / "loop")
    (root / "gpt" / "gone").symlink_to(root / "gpt" / "nowhere")
    latest = http.get("/v1/checkpoints/gpt/latest")
    assert latest.content == http.get("/v1/checkpoints/gpt/10").content
    for place in ("loop", "gone"):
        check_problem(http.get(f"/v1/checkpoints/gpt/{place}"), 404, "checkpoint_not_found")
    steps = [entry["step"] for entry in http.get("/v1/checkpoints").json()["items"]]
    assert steps == ["final", "9", "10", "latest"]


def test_a_root_that_is_a_link_works(root, tmp_path, serving) -> None:
    (tmp_path / "link").symlink_to(root)
    with serving(create_app(Settings(root=tmp_path / "link", allow_anonymous=True))) as url:
        answer = httpx.get(f"{url}/v1/checkpoints/gpt/9/stats", trust_env=False, timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("rest", ["", "/stats"])
def test_corrupt_manifests(check_problem, http, root, rest) -> None:
    path = root / "gpt" / "9" / "luma.json"
    path.write_bytes(path.read_bytes().replace(b"exp_avg_sq", b"exp_avg_xx"))
    body = check_problem(http.get(f"/v1/checkpoints/gpt/9{rest}"), 500, "corrupt_checkpoint")
    assert str(body["detail"]).startswith("gpt/9/luma.json: ")
    assert str(root.parent) not in str(body)


def test_a_newer_format_is_named(check_problem, http, root) -> None:
    (root / "gpt" / "9" / "luma.json").write_text('{"manifest": {"version": 99}}')
    body = check_problem(http.get("/v1/checkpoints/gpt/9"), 500, "unsupported_version")
    assert "99" in str(body["detail"])
    assert "Upgrade" in str(body["hint"])


def test_corrupt_shards_break_only_their_own_statistics(check_problem, http, root) -> None:
    shard = next((root / "gpt" / "9").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-10] ^= 1
    shard.write_bytes(content)
    body = check_problem(http.get("/v1/checkpoints/gpt/9/stats"), 500, "corrupt_checkpoint")
    assert shard.name in str(body["detail"])
    assert str(root.parent) not in str(body)
    assert http.get("/v1/checkpoints/gpt/9").status_code == 200
    assert http.get("/v1/checkpoints/gpt/10/stats").status_code == 200


def test_missing_shards(check_problem, http, root) -> None:
    next((root / "gpt" / "9").glob("*.safetensors")).unlink()
    check_problem(http.get("/v1/checkpoints/gpt/9/stats"), 500, "corrupt_checkpoint")


def test_a_root_that_vanished(check_problem, http, root) -> None:
    shutil.rmtree(root)
    body = check_problem(http.get("/v1/checkpoints"), 503, "storage_error")
    assert str(root) not in str(body)


def test_the_root_is_hidden_in_messages_unless_it_is_the_whole_file_system(root) -> None:
    message = f"{root}/gpt/9/luma.json: I/O error in {root}."
    assert Root(root).hide(message) == "gpt/9/luma.json: I/O error in the root."
    assert Root("/").hide(message) == message


def test_unexpected_exceptions_tell_the_log_and_not_the_client(
    check_problem, http, monkeypatch, caplog
) -> None:
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(stats, "compute", broken)
    response = http.get("/v1/checkpoints/gpt/9/stats")
    body = check_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    failures = [record for record in caplog.records if record.message == "request failed"]
    assert failures[0].request_id == body["request_id"]
    assert "secret detail" in str(failures[0].exc_info[1])
    monkeypatch.undo()
    assert http.get("/v1/checkpoints/gpt/9/stats").status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": "missing"}, "does not exist"),
        ({"root": "file"}, "is not a folder"),
        ({"port": 65536}, "port=65536"),
        ({"port": -1}, "port=-1"),
        ({"stats_workers": 0}, "stats_workers=0"),
        ({"stats_cache_bytes": -1}, "stats_cache_bytes=-1"),
        ({"shutdown_seconds": float("nan")}, "shutdown_seconds=nan"),
        ({"part_bytes": 0}, "part_bytes=0 must be from 1024"),
        ({"host": "0.0.0.0"}, "can be reached from elsewhere, and there are no tokens"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "can be reached from elsewhere"),
        ({}, "nobody could use the server"),
        ({"tokens_file": Path("missing.json")}, "is not a file"),
        ({"tokens_file": Path("missing.json"), "allow_anonymous": True}, "exclude each other"),
    ],
)
def test_settings_that_cannot_work(tmp_path, change, message) -> None:
    (tmp_path / "file").touch()
    if "root" in change:
        change = {"root": tmp_path / change["root"]}
    with pytest.raises(ConfigurationError, match=message):
        Settings(**{"root": tmp_path, **change})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_is_recognised(tmp_path, host, loopback) -> None:
    tokens = tmp_path / "tokens.json"
    create_token(tokens, name="any")
    settings = Settings(root=tmp_path, host=host, tokens_file=tokens)
    assert settings.is_loopback is loopback


def test_open_files_are_closed(http, root) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        http.get("/v1/checkpoints")
        http.get("/v1/checkpoints/gpt/9")
        http.get("/v1/checkpoints/gpt/10/stats", params={"param": "h*"})
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
