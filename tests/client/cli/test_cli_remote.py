"""``luma push``, ``pull``, ``ls``, ``rm``, ``pin`` and ``login`` against a real server."""

from __future__ import annotations

import io
import itertools
import json

import pytest
import torch

from luma_client.credentials import credentials_file, token_for
from luma_core import LUMA, checkpoint

_runs = itertools.count()


def saved(place, seed: int = 0):
    torch.manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(8, 64))
    param.grad = torch.randn_like(param)
    optimizer = LUMA([("w", param)], seed=seed)
    optimizer.step()
    checkpoint.save(place, optimizer=optimizer, overwrite=True)
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("source") / "c")


@pytest.fixture
def run(server) -> str:
    """URL of a run that no other test uses."""
    return f"{server.url}/cli-{next(_runs)}"


def test_there_and_back(luma, source, run, tmp_path):
    code, out, err = luma("push", source, f"{run}/1", "--json")
    assert (code, err) == (0, "")
    pushed = json.loads(out)
    manifest = checkpoint.open(source).manifest
    assert (pushed["digest"], pushed["url"]) == (manifest.digest, f"{run}/1")
    assert pushed["bytes"] == sum(file.bytes for file in manifest.files)
    code, out, _ = luma("pull", f"{run}/1", tmp_path / "back", "--json")
    assert (code, json.loads(out)["digest"]) == (0, manifest.digest)
    assert luma("diff", source, tmp_path / "back", "--quiet") == (0, "identical\n", "")
    assert luma("push", source, f"{run}/2", "--quiet") == (0, f"{run}/2\n", "")
    code, out, _ = luma("push", source, f"{run}/3")
    assert out.startswith(f"pushed {source} to {run}/3: 1 file, ")


def test_other_commands_take_a_server_for_a_folder(luma, source, run, tmp_path):
    luma("push", source, f"{run}/1")
    for command in (["inspect"], ["stats"], ["verify"], ["stats", "--param", "w"]):
        local = json.loads(luma(*command, source, "--json")[1])
        remote = json.loads(luma(*command, f"{run}/1", "--json")[1])
        assert remote.pop("path") == f"{run}/1"
        local.pop("path")
        assert remote == local
    assert luma("diff", source, f"{run}/1", "--quiet")[1] == "identical\n"
    assert luma("convert", f"{run}/1", tmp_path / "adamw.pt", "--to", "adamw")[0] == 0
    assert luma("convert", tmp_path / "adamw.pt", f"{run}/2", "--to", "luma")[0] == 0
    assert luma("diff", source, f"{run}/2")[0] == 0
    assert luma("verify", f"{run}/2", "--quiet")[0] == 0


def test_listings(luma, source, run):
    assert json.loads(luma("ls", run, "--json")[1])["items"] == []
    assert luma("ls", run, "--quiet") == (0, "", "")
    code, out, err = luma("ls", run)
    assert (code, out, err.strip()) == (0, "", "there is no such checkpoint")
    for step in (1, 2, 10):
        luma("push", source, f"{run}/{step}")
    name = run.rpartition("/")[2]
    assert luma("ls", run, "--quiet")[1].split() == [f"{name}/1", f"{name}/2", f"{name}/10"]
    assert luma("ls", run, "--quiet", "--limit", 2)[1].split() == [f"{name}/1", f"{name}/2"]
    assert luma("ls", run, "--quiet", "--min-step", 2)[1] == ""
    assert len(luma("ls", run, "--quiet", "--optimizer", "luma", "--max-step", 1)[1].split()) == 3
    assert f"{name}/1" in luma("ls", run.rpartition("/")[0], "--quiet")[1].split()
    assert luma("ls", run.replace("luma://", "http://"), "--quiet")[0] == 0
    assert luma("pin", f"{run}/2")[0] == 0
    code, out, _ = luma("ls", run, "--pinned")
    assert code == 0
    assert "pinned" in out
    items = json.loads(luma("ls", run, "--pinned", "--json")[1])["items"]
    assert [(item["step"], item["pinned"]) for item in items] == [("2", True)]
    files = json.loads(luma("ls", f"{run}/1", "--json")[1])["items"]
    assert [file["name"] for file in files] == [
        file.name for file in checkpoint.open(source).manifest.files
    ]
    assert files[0]["name"] in luma("ls", f"{run}/1")[1]
    assert luma("ls", run, "--label", "best", "--label", "a=b", "--quiet")[1] == ""


def test_removing_asks_and_spares_what_is_pinned(luma, source, run):
    for step in (1, 2):
        luma("push", source, f"{run}/{step}")
    code, _, err = luma("rm", f"{run}/1")
    assert code == 2
    assert f"luma rm {run}/1 --yes" in err
    luma("pin", f"{run}/1")
    code, _, err = luma("rm", f"{run}/1", "--yes")
    assert code == 8
    assert "pinned" in err
    assert (
        luma("pin", f"{run}/1", "--remove", "--json")[1]
        == json.dumps({"url": f"{run}/1", "pinned": False}) + "\n"
    )
    assert luma("rm", f"{run}/1", f"{run}/3", "--yes")[0] == 3
    assert len(luma("ls", run, "--quiet")[1].split()) == 2
    code, out, _ = luma("rm", f"{run}/1", f"{run}/2", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"removed": [f"{run}/1", f"{run}/2"]})
    assert luma("ls", run, "--quiet")[1] == ""


def test_what_is_there_is_replaced_only_on_request(luma, source, run, tmp_path):
    other = saved(tmp_path / "other", seed=1)
    luma("push", source, f"{run}/1")
    code, _, err = luma("push", other, f"{run}/1")
    assert code == 4
    assert f"luma push {other} {run}/1 --overwrite" in err
    code, _, err = luma("pull", f"{run}/1", other)
    assert code == 4
    assert f"luma pull {run}/1 {other} --overwrite" in err
    assert luma("push", other, f"{run}/1", "--overwrite")[0] == 0
    assert luma("pull", f"{run}/1", source)[0] == 4
    assert luma("pull", f"{run}/1", other)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["push", "nowhere", "{run}/1"], 3),
        (["push", "{source}", "{run}"], 2),
        (["push", "{source}", "runs/1"], 2),
        (["push", "{source}", "{run}/../1"], 5),
        (["push", "{source}", "luma://127.0.0.1:1/r/1"], 8),
        (["push", "{source}"], 2),
        (["pull", "{run}/1", "{tmp}/x"], 3),
        (["pull", "{run}/1/luma.json", "{tmp}/x"], 2),
        (["pull", "s3://bucket/x", "{tmp}/x"], 2),
        (["ls", "nowhere"], 2),
        (["ls", "luma://"], 2),
        (["ls", "{run}/1"], 3),
        (["ls", "{run}", "--limit", "0"], 2),
        (["ls", "{run}", "--json", "--quiet"], 2),
        (["rm", "{run}/1", "--yes"], 3),
        (["rm", "{run}", "--yes"], 2),
        (["pin", "{run}/1"], 3),
        (["pin"], 2),
        (["login", "runs"], 2),
    ],
)
def test_wrong_input(luma, source, run, tmp_path, arguments, code):
    given = [text.format(run=run, source=source, tmp=tmp_path) for text in arguments]
    got, out, err = luma(*given)
    assert (got, out) == (code, "")
    assert err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_an_error_as_json(luma, run):
    code, _, err = luma("pin", f"{run}/1", "--json")
    error = json.loads(err)["error"]
    assert (error["type"], error["exit_code"], code) == ("CheckpointNotFoundError", 3, 3)


@pytest.fixture
def guarded(serving, tmp_path, luma):
    """A server that wants a token, and a token for writing."""
    tokens = tmp_path / "tokens.json"
    code, out, err = luma(
        *("token", "create", "--tokens-file", tokens, "--name", "ci"),
        *("--scope", "write", "--quiet"),
    )
    assert code == 0, err
    with serving(tmp_path / "guarded", allow_anonymous=False, tokens_file=tokens) as served:
        yield served, out.strip()


def test_a_server_that_wants_a_token(luma, source, guarded, monkeypatch):
    served, token = guarded
    url = f"{served.url}/run/1"
    code, _, err = luma("push", source, url)
    assert code == 8
    assert f"luma login {served.address}" in err
    code, _, err = luma("inspect", url)
    assert code == 8
    assert "it wants a token" in err
    assert f"luma login {served.address}" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    assert luma("login", served.url)[0] == 8
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert luma("login", served.url)[0] == 2
    assert token_for(served.address) == ""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    code, out, err = luma("login", served.url, "--json")
    assert (code, json.loads(out)["kept"], token in out + err) == (0, True, False)
    assert token_for(served.address) == token
    assert luma("push", source, url)[0] == 0
    assert luma("login", served.url, "--forget")[0] == 0
    assert luma("ls", served.url)[0] == 8
    assert token not in credentials_file().read_text()
    monkeypatch.setenv("LUMA_TOKEN", token)
    assert luma("ls", served.url)[0] == 0
