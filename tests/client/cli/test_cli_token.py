"""``luma token``: made once, listed without secrets, revoked; a server follows."""

from __future__ import annotations

import json

import pytest

from luma_server.http.tokens import read_tokens


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.json"


def test_a_token_is_made_shown_once_and_revoked(luma, file) -> None:
    options = ["--tokens-file", file, "--json"]
    more = ["--name", "me", "--scope", "write", "--run", "a", "--run", "b", "--days", 2]
    code, out, _ = luma("token", "create", *options, *more, "--requests-per-second", 5)
    made = json.loads(out)
    assert code == 0
    assert (made["name"], made["scope"], made["runs"]) == ("me", "write", ["a", "b"])
    assert made["requests_per_second"] == 5
    assert made["expires"] > made["created"]
    secret = made["token"].split("_")[2]
    code, out, _ = luma("token", "list", *options)
    assert code == 0
    assert secret not in out
    (listed,) = json.loads(out)["tokens"]
    assert listed == {key: value for key, value in made.items() if key != "token"}
    code, out, _ = luma("token", "revoke", made["id"], *options)
    assert (code, json.loads(out)["id"]) == (0, made["id"])
    assert read_tokens(file) == ()


def test_what_people_and_scripts_see(luma, file) -> None:
    code, out, err = luma("token", "create", "--tokens-file", file, "--name", "me", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("luma_")
    token_id = out.split("_")[1]
    _, out, _ = luma("token", "list", "--tokens-file", file)
    assert token_id in out
    assert "never" in out
    assert luma("token", "list", "--tokens-file", file, "--quiet")[1] == f"{token_id}\n"
    _, out, err = luma("token", "create", "--tokens-file", file, "--name", "you")
    assert out.startswith("luma_")
    assert "kept nowhere else" in err


def test_what_cannot_work(luma, file) -> None:
    code, _, err = luma("token", "list", "--tokens-file", file)
    assert code == 2
    assert "tokens.json" in err
    luma("token", "create", "--tokens-file", file, "--name", "me")
    assert luma("token", "revoke", "00", "--tokens-file", file)[0] == 2
    assert luma("token", "create", "--tokens-file", file, "--name", "x", "--run", "../x")[0] == 2
    assert luma("token", "create", "--tokens-file", file, "--name", "x", "--scope", "all")[0] == 2
    assert len(read_tokens(file)) == 1
