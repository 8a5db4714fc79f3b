"""Tokens: kept for one address, in a file that nobody else can read."""

from __future__ import annotations

import json
import stat

import httpx
import pytest

from luma_client import Client
from luma_client.credentials import credentials_file, keep_token, token_for
from luma_core.errors import ConfigurationError, ServiceError

A, B = "http://127.0.0.1:8000", "https://luma.example.org"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_a_token_belongs_to_its_address():
    keep_token(A, "one")
    keep_token(B, "two")
    assert (token_for(A), token_for(f"{B}:443"), token_for(f"{A}/")) == ("one", "two", "one")
    for other in ("http://127.0.0.1:8001", "https://127.0.0.1:8000", "http://luma.example.org"):
        assert token_for(other) == ""
    keep_token(A, None)
    keep_token("http://never.seen", None)
    assert (token_for(A), token_for(B)) == ("", "two")


def test_nobody_else_can_read_the_file():
    file = keep_token(A, "one")
    assert file == credentials_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others can read it"):
        token_for(A)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"tokens": 1}', '{"tokens": {"a": 1}}', "\xff"]
)
def test_a_file_that_holds_no_tokens(content):
    file = keep_token(A, "one")
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        token_for(A)


def sent_token(**options) -> str | None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"status": "ok", "version": "1"})

    with Client(A, transport=httpx.MockTransport(answer), **options) as client:
        client.health()
    return seen[0]


def test_which_token_is_sent(monkeypatch):
    assert sent_token() is None
    keep_token(A, "kept")
    assert sent_token() == "Bearer kept"
    monkeypatch.setenv("LUMA_TOKEN", "variable")
    assert sent_token() == "Bearer variable"
    assert sent_token(token="given") == "Bearer given"
    assert sent_token(token="") is None


@pytest.mark.parametrize("token", ["a b", "a\nb", "é", "a\r\nX: y"])
def test_tokens_that_no_header_can_hold(token):
    with pytest.raises(ConfigurationError, match="token=") as caught:
        Client(A, token=token)
    assert token not in str(caught.value)


def test_a_token_does_not_follow_a_redirect():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"Location": "http://elsewhere.test/"})

    with (
        Client(A, token="t", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ServiceError, match="302"),
    ):
        client.health()
    assert asked == ["127.0.0.1"]


def test_the_file_is_json_with_a_version():
    content = json.loads(keep_token(A, "one").read_text())
    assert content == {"version": 1, "tokens": {"http://127.0.0.1:8000": "one"}}
