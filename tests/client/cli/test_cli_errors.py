"""Wrong input to ``luma``: an exit code, one sentence and a hint, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from luma_client.console.errors import EXIT_CODES, exit_code
from luma_core import LUMA, checkpoint
from luma_core.errors import LumaError, StateMismatchError


@pytest.fixture
def saved(tmp_path):
    param = torch.nn.Parameter(torch.randn(4, 64))
    param.grad = torch.randn_like(param)
    optimizer = LUMA([("w", param)], seed=0)
    optimizer.step()
    checkpoint.save(tmp_path / "c", optimizer=optimizer)
    return tmp_path / "c"


class Payload:
    def __reduce__(self):
        return print, ("ran code",)


def kinds(cls: type[LumaError]) -> list[type[LumaError]]:
    children = [child for child in cls.__subclasses__() if child.__module__ == cls.__module__]
    return [cls, *(kind for child in children for kind in kinds(child))]


@pytest.mark.parametrize("kind", kinds(LumaError))
def test_every_error_has_an_exit_code_that_help_explains(kind, luma):
    code = exit_code(kind("what was wrong."))
    assert code in {listed for _, listed in EXIT_CODES}
    assert f"{code} " in luma("--help")[1].split("Exit codes:")[1]


@pytest.mark.parametrize("command", ["inspect", "stats", "verify"])
def test_a_place_without_a_checkpoint(luma, tmp_path, command):
    code, out, err = luma(command, tmp_path / "nothing")
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert str(tmp_path / "nothing") in err


def test_both_sides_of_a_diff_must_exist(luma, saved, tmp_path):
    assert luma("diff", saved, tmp_path / "nothing")[0] == 3
    assert luma("diff", tmp_path / "nothing", saved)[0] == 3


def test_the_error_as_json(luma, tmp_path):
    code, out, err = luma("stats", tmp_path / "nothing", "--json")
    assert (code, out) == (3, "")
    error = json.loads(err)["error"]
    assert error["type"] == "CheckpointNotFoundError"
    assert error["exit_code"] == 3
    assert error["hint"]


def test_a_damaged_manifest(luma, saved):
    manifest = saved / checkpoint.format.MANIFEST_NAME
    manifest.write_bytes(manifest.read_bytes().replace(b'"step": 1', b'"step": 2'))
    for command in ("inspect", "stats"):
        code, _, err = luma(command, saved)
        assert code == 5
        assert checkpoint.format.MANIFEST_NAME in err
    assert luma("verify", saved)[0] == 1


def test_a_newer_format(luma, saved):
    manifest = saved / checkpoint.format.MANIFEST_NAME
    manifest.write_bytes(manifest.read_bytes().replace(b'"version": 1', b'"version": 9'))
    code, _, err = luma("inspect", saved)
    assert code == 5
    assert "hint: Upgrade" in err.replace(" hint", "hint")


def test_a_file_that_would_run_code(luma, tmp_path, capsys):
    torch.save(Payload(), tmp_path / "bad.pt")
    code, out, err = luma("convert", tmp_path / "bad.pt", tmp_path / "c", "--to", "luma")
    assert (code, out) == (6, "")
    assert "ran code" not in err
    assert "hint" in err
    assert not (tmp_path / "c").exists()


def test_a_file_that_is_no_state(luma, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"not a state")
    code, _, err = luma("inspect", tmp_path / "x.pt")
    assert code == 6
    assert "Traceback" not in err


def test_a_pattern_that_matches_nothing(luma, saved):
    code, _, err = luma("stats", saved, "--param", "x*")
    assert code == 2
    assert "'x*'" in err
    assert "'w'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["convert", "a"],
        ["convert", "a", "b", "--to", "c"],
        ["stats", "a", "--json", "--quiet"],
        ["demo", "--steps", "1"],
    ],
)
def test_wrong_usage(luma, arguments):
    code, out, err = luma(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err


def test_cuda_where_there_is_none(luma, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = luma("demo", "--device", "cuda", "--out", tmp_path / "d")
    assert code == 2
    assert "--device cpu" in err
    assert not (tmp_path / "d").exists()


def test_an_interruption(luma, saved, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_core.stats.compute", interrupt)
    assert luma("stats", saved)[0] == 130


def test_a_bug_keeps_its_traceback(luma, saved, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("luma_core.stats.compute", fail)
    with pytest.raises(ZeroDivisionError):
        luma("stats", saved)


def test_a_reader_that_goes_away(saved):
    program = f"from luma_client.cli import main; main(['inspect', {str(saved)!r}, '--json'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == b""


def test_what_is_not_there_is_told_apart(luma, tmp_path):
    (tmp_path / "file.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("nothing", "there is no folder"),
        ("file.pt", "`luma convert` reads"),
        ("empty", "luma.json is missing"),
    ):
        code, _, err = luma("verify", tmp_path / name)
        assert code == 3
        assert told in err


def test_verify_counts_what_it_checked(luma, saved):
    manifest = saved / checkpoint.format.MANIFEST_NAME
    shard = next(saved.glob("optimizer-*"))
    shard.unlink()
    found = checkpoint.verify(saved)
    assert (found.files, found.bytes) == (1, manifest.stat().st_size)
    code, out, _ = luma("verify", saved)
    assert code == 1
    assert "1 problem in 1 file, " in out
    manifest.write_bytes(b"{}")
    assert checkpoint.verify(saved).bytes == 2


def test_another_optimizer_is_refused_on_load(saved):
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(4, 64))])
    with pytest.raises(StateMismatchError, match=r"cannot be loaded into 'torch\.AdamW'"):
        checkpoint.load(saved, optimizer=other)


def test_equal_values_in_two_formats(luma, saved, tmp_path):
    assert luma("convert", saved, tmp_path / "a.pt", "--to", "adamw")[0] == 0
    assert "All values are equal; they are stored differently." in luma(
        "diff", saved, tmp_path / "a.pt"
    )[1].replace("\n", " ")
    found = json.loads(luma("diff", saved, tmp_path / "a.pt", "--json")[1])
    assert (found["identical"], found["values_equal"]) == (False, True)
