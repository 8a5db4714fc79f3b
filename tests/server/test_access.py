"""Tokens: who may do what, where, how long and how often."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from luma_core.errors import ConfigurationError
from luma_server import Settings, create_app
from luma_server.http.tokens import create_token, read_tokens, revoke_token


@pytest.fixture
def tokens(tmp_path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def give(tokens):
    """Makes a token; gives its header."""
    create_token(tokens, name="nobody")

    def make(scope: str = "read", *runs: str, **more: object) -> dict[str, str]:
        _, text = create_token(tokens, name="somebody", scope=scope, runs=runs, **more)
        return {"Authorization": f"Bearer {text}"}

    return make


@pytest.fixture
def guarded(root, tokens, give, serving):
    settings = Settings(root=root, tokens_file=tokens, part_bytes=1024)
    with (
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


READS = [
    "/v1/runs",
    "/v1/checkpoints",
    "/v1/checkpoints/gpt/9",
    "/v1/checkpoints/gpt/9/stats",
    "/v1/checkpoints/gpt/9/files",
    "/v1/jobs",
    "/v1/compare?a=gpt/9&b=gpt/10",
    "/metrics",
]


@pytest.mark.parametrize("path", READS)
def test_everything_needs_a_token(guarded, give, check_problem, path) -> None:
    answer = guarded.get(path)
    check_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert guarded.get(path, headers=give()).status_code == 200
    for open_path in ("/healthz", "/readyz", "/openapi.json"):
        assert guarded.get(open_path).status_code == 200


def test_tokens_that_are_none(guarded, give, check_problem) -> None:
    good = give()["Authorization"].removeprefix("Bearer ")
    head, token_id, secret = good.split("_", 2)
    for text in (
        "",
        "Bearer",
        f"Basic {good}",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer {head}_{token_id}_",
        f"Bearer {head}_0000_{secret}",
        "Bearer luma__",
        f"Bearer {secret}",
    ):
        answer = guarded.get("/v1/runs", headers={"Authorization": text})
        check_problem(answer, 401, "unauthorized")
        assert secret not in answer.text


def test_scopes(guarded, give, check_problem) -> None:
    for method, path in (
        ("PUT", "/v1/checkpoints/gpt/9/pin"),
        ("DELETE", "/v1/checkpoints/gpt/9"),
        ("GET", "/v1/uploads"),
        ("DELETE", "/v1/jobs/x"),
    ):
        check_problem(guarded.request(method, path, headers=give("read")), 403, "forbidden")
    for scope in ("write", "admin"):
        answer = guarded.put("/v1/checkpoints/gpt/9/pin", headers=give(scope))
        assert answer.status_code == 204


def test_other_runs_cannot_be_seen_or_touched(guarded, give, source, check_problem) -> None:
    theirs = give("write", "gpt")
    assert guarded.get("/v1/checkpoints/gpt/9", headers=theirs).status_code == 200
    for path in (
        "/v1/checkpoints/bert/final",
        "/v1/checkpoints/none/1",
        "/v1/checkpoints/bert/final/stats",
        "/v1/runs/bert/series",
        "/v1/compare?a=gpt/9&b=bert/final",
    ):
        check_problem(guarded.get(path, headers=theirs), 403, "forbidden")
    listed = guarded.get("/v1/checkpoints", headers=theirs).json()["items"]
    assert {entry["run"] for entry in listed} == {"gpt"}
    runs = guarded.get("/v1/runs", headers=theirs).json()["items"]
    assert [run["run"] for run in runs] == ["gpt"]
    body = {"run": "bert", "step": "1", "manifest": (source / "luma.json").read_text()}
    answer = guarded.post("/v1/uploads", json=body, headers=theirs)
    check_problem(answer, 403, "forbidden")
    answer = guarded.delete("/v1/checkpoints/bert/final", headers=theirs)
    check_problem(answer, 403, "forbidden")
    body = {"format": "luma", "to": {"run": "bert", "step": "2"}}
    answer = guarded.post("/v1/checkpoints/gpt/9/convert", json=body, headers=theirs)
    check_problem(answer, 403, "forbidden")


def test_uploads_and_jobs_of_others(guarded, give, source, check_problem) -> None:
    mine, other, admin = give("write"), give("write"), give("admin")
    body = {"run": "new", "step": "1", "manifest": (source / "luma.json").read_text()}
    session = guarded.post("/v1/uploads", json=body, headers=mine).json()
    path = f"/v1/uploads/{session['id']}"
    assert guarded.get(path, headers=mine).status_code == 200
    for method, rest in (("GET", ""), ("POST", "/commit"), ("DELETE", "")):
        answer = guarded.request(method, path + rest, headers=other)
        check_problem(answer, 404, "upload_not_found")
    assert guarded.get("/v1/uploads", headers=other).json()["items"] == []
    assert len(guarded.get("/v1/uploads", headers=admin).json()["items"]) == 1
    assert guarded.delete(path, headers=admin).status_code == 204


def test_what_another_run_has_must_be_sent(guarded, give, source, uploader_of, root) -> None:
    guarded.headers.update(give("write", "a-"))
    assert uploader_of(guarded).push(source, "a-1", "1").status_code == 201
    guarded.headers.update(give("write", "b-"))
    session = uploader_of(guarded).begin(source, "b-1", "1")
    assert all(file["needed"] for file in session["files"])


def test_a_token_that_expired(guarded, give, tokens, check_problem) -> None:
    header = give("read", expires_seconds=3600)
    assert guarded.get("/v1/runs", headers=header).status_code == 200
    tokens.write_text(tokens.read_text().replace('"expires": "20', '"expires": "19'))
    check_problem(guarded.get("/v1/runs", headers=header), 401, "unauthorized")


def test_a_token_that_is_revoked_works_no_more(guarded, give, tokens, check_problem) -> None:
    header = give()
    assert guarded.get("/v1/runs", headers=header).status_code == 200
    revoke_token(tokens, header["Authorization"].split("_")[1])
    check_problem(guarded.get("/v1/runs", headers=header), 401, "unauthorized")


def test_a_damaged_file_of_tokens_lets_nobody_in(guarded, give, tokens, check_problem) -> None:
    header = give()
    tokens.write_text("{")
    check_problem(guarded.get("/v1/runs", headers=header), 503, "unavailable")


def test_too_many_requests(guarded, give, check_problem) -> None:
    slow = give("read", requests_per_second=2)
    answers = [guarded.get("/v1/runs", headers=slow) for _ in range(12)]
    assert [answer.status_code for answer in answers[:4]] == [200] * 4
    check_problem(answers[-1], 429, "rate_limited")
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert guarded.get("/v1/runs", headers=give()).status_code == 200


def test_without_tokens_only_loopback_names_are_answered(http, check_problem) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[fe80::1]:80", ""):
        answer = http.get("/v1/runs", headers={"Host": host})
        check_problem(answer, 400, "wrong_host")
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]", "[::1]:80"):
        assert http.get("/v1/runs", headers={"Host": host}).status_code == 200


def test_the_file_holds_no_secret_and_is_the_owners(tokens) -> None:
    entry, text = create_token(tokens, name="me", scope="write", runs=("gpt",))
    secret = text.split("_", 2)[2]
    assert len(secret) >= 43
    assert secret not in tokens.read_text()
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert read_tokens(tokens) == (entry,)
    assert [path.name for path in tokens.parent.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name=''"),
        ({"name": "a\nb"}, "printable"),
        ({"runs": ("../x",)}, "runs: '../x'"),
        ({"expires_seconds": 0}, "expires_seconds=0"),
        ({"expires_seconds": float("nan")}, "expires_seconds=nan"),
    ],
)
def test_tokens_that_cannot_be(tokens, change, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_token(tokens, **{"name": "me", **change})
    assert not tokens.exists()


def test_files_that_hold_no_tokens(tokens) -> None:
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        read_tokens(tokens)
    tokens.write_text(json.dumps({"version": 2, "tokens": []}))
    with pytest.raises(ConfigurationError, match="no file of tokens"):
        create_token(tokens, name="me")
    with pytest.raises(ConfigurationError, match="tokens_file"):
        create_token(tokens.parent / "missing" / "tokens.json", name="me")
    tokens.unlink()
    create_token(tokens, name="me")
    with pytest.raises(ConfigurationError, match="no token '00'"):
        revoke_token(tokens, "00")


def test_a_server_over_tokens_that_cannot_be_read(root, tokens) -> None:
    create_token(tokens, name="me")
    settings = Settings(root=root, tokens_file=tokens)
    tokens.write_text("[]")
    with pytest.raises(ConfigurationError, match="no file of tokens"):
        create_app(replace(settings))
