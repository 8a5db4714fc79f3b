"""A server serves what its root and file of tokens were when it was told of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from luma_server import Settings, create_app
from luma_server.catalog.place import Root
from luma_server.http.tokens import create_token, read_tokens


@pytest.mark.parametrize(
    ("given", "tokens_file"),
    [
        ("root", Path("tokens.json")),
        (Path("root"), Path("~/tokens.json")),
        ("local://root", Path("tokens.json")),
        ("~/root", Path("~/tokens.json")),
    ],
)
def test_a_server_stays_with_its_root(
    root, tmp_path, monkeypatch, serving, given, tokens_file
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    _, secret = create_token(tokens_file, name="me")
    app = create_app(Settings(root=given, tokens_file=tokens_file))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    headers = {"Authorization": f"Bearer {secret}"}
    with (
        serving(app) as url,
        httpx.Client(base_url=url, trust_env=False, headers=headers, timeout=60) as http,
    ):
        found = http.get("/v1/checkpoints").json()["items"]
        assert {(one["run"], one["step"]) for one in found} == {
            *(("gpt", "9"), ("gpt", "10"), ("bert", "final"))
        }
        # The file is looked at again: a token that was taken away works no more.
        create_token(tmp_path / "tokens.json", name="another")
        assert http.get("/v1/checkpoints").status_code == 200
        shutil.copy(tmp_path / "tokens.json", tmp_path / "elsewhere")
        (tmp_path / "tokens.json").write_text('{"version": 1, "tokens": []}')
        assert http.get("/v1/checkpoints").status_code == 401
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["tokens.json"]


def test_the_private_area_stays_with_the_root(root, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened = Root("root")
    monkeypatch.chdir("/")
    assert opened.private("jobs").url == str(root / ".luma" / "jobs")
    assert opened.checkpoint("gpt", "9").size("luma.json")


def test_tokens_are_read_under_the_home_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    create_token(Path("~/tokens.json"), name="me")
    assert [token.name for token in read_tokens(tmp_path / "tokens.json")] == ["me"]
    assert read_tokens(Path("~/tokens.json")) == read_tokens(tmp_path / "tokens.json")
