"""Every command of ``luma``: what it prints for people, as JSON and quietly."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from luma_client.cli.app import app, main
from luma_client.console.output import Output
from luma_core import LUMA, checkpoint, convert

COMMANDS = (
    *(
        "convert",
        "demo",
        "diff",
        "doctor",
        "estimate",
        "flatten",
        "inspect",
        "login",
        "ls",
        "partition",
        "pin",
    ),
    *("pull", "push", "rm", "serve", "stats", "verify"),
)


def trained(seed: int) -> LUMA:
    torch.manual_seed(seed)
    params = {
        "h.weight": torch.nn.Parameter(torch.randn(8, 256)),
        "h.bias": torch.nn.Parameter(torch.randn(8)),
    }
    optimizer = LUMA(params.items(), lr=0.5, seed=seed)
    for _ in range(3):
        for param in params.values():
            param.grad = torch.randn_like(param)
        optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """``{root}/run/3``, ``{root}/run/4`` and the first as ``{root}/adamw.pt``."""
    root = tmp_path_factory.mktemp("cli")
    for step, seed in (("3", 0), ("4", 1)):
        checkpoint.save(root / "run" / step, optimizer=trained(seed))
    convert.convert(root / "run" / "3", root / "adamw.pt", to="adamw")
    return root


@pytest.fixture
def luma_json(luma):
    """Runs a command with ``--json``; gives its object, after checking that it is all there is."""

    def call(*arguments: object) -> dict:
        code, out, err = luma(*arguments, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return call


def documented_keys(command: str) -> set[str]:
    epilog = import_module(f"luma_client.cli.{command}").EPILOG
    listed = epilog.split("JSON keys")[1].split(":", 1)[1].split("(")[0]
    return {word.strip(" ,") for word in listed.replace(" and ", ", ").split(",")}


def test_help_names_every_command_and_the_exit_codes(luma):
    code, out, _ = luma("--help")
    assert code == 0
    assert all(f" {name} " in out for name in COMMANDS)
    assert "Exit codes" in out
    assert {command.name for command in app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_gives_an_example_and_the_json_keys(luma, command):
    code, out, _ = luma(command, "--help")
    assert code == 0
    assert f"luma {command} " in out
    assert "JSON keys" in out
    assert "--json" in out


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from luma_client.cli.app import run; run(['--help']);"
        "print([m for m in sys.modules if m.partition('.')[0] in "
        "('torch', 'numpy', 'luma_core', 'httpx')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # Of our own, only names.
    names = {"luma_core", "luma_core._version", "luma_core.lazy", "luma_core.catalog"}
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) <= names, done.stderr


def test_version(luma):
    from luma_core import __version__

    assert luma("--version") == (0, f"luma {__version__}\n", "")


def test_main_leaves_with_the_exit_code(capsys):
    with pytest.raises(SystemExit) as left:
        main(["inspect", "/nowhere/at/all"])
    assert left.value.code == 3
    assert capsys.readouterr().out == ""


def test_inspect_tells_what_a_checkpoint_holds(luma, luma_json, root):
    found = luma_json("inspect", root / "run" / "3")
    assert set(found) == documented_keys("inspect")
    assert (found["format"], found["version"], found["algorithm"]) == ("luma", 1, "luma")
    assert (found["step"], found["parameters"], found["elements"]) == (3, 2, 8 * 256 + 8)
    state_bytes = sum(t.nbytes for state in trained(0).state.values() for t in state.values())
    assert found["state_bytes"] == state_bytes
    assert found["adamw_ratio"] == pytest.approx(state_bytes / (8 * 2056))
    assert found["float32"]["parameters"] == 1
    assert "min_compress_elements=65,536" in found["float32"]["why"]
    shards = [file["bytes"] for file in found["files"] if file["kind"] == "optimizer"]
    assert sum(shards) == found["stored_bytes"]

    code, out, _ = luma("inspect", root / "run" / "3", "--params")
    assert code == 0
    for told in ("luma v1", "lr=0.5", "h.weight", "8 x 256", "fp32", found["digest"]):
        assert told in out
    assert luma("inspect", root / "run" / "3", "-q") == (0, "luma\n", "")


def test_inspect_reads_adamw_files_too(luma_json, root):
    found = luma_json("inspect", root / "adamw.pt")
    assert set(found) == documented_keys("inspect")
    assert (found["format"], found["step"], found["version"]) == ("adamw", 3, None)
    assert found["state_bytes"] == 8 * 2056 + 2 * 4
    assert found["stored_bytes"] == (root / "adamw.pt").stat().st_size


def test_stats_chooses_parameters(luma, luma_json, root):
    found = luma_json("stats", root / "run" / "3")
    assert set(found) == documented_keys("stats")
    assert [entry["name"] for entry in found["parameters"]] == ["h.weight", "h.bias"]
    chosen = luma_json("stats", root / "run" / "3", "--param", "*.bias")
    assert [entry["name"] for entry in chosen["parameters"]] == ["h.bias"]
    assert chosen["total"]["elements"] == 8

    _, out, _ = luma("stats", root / "run" / "3")
    assert "h.weight" in out
    assert "total (2)" in out
    code, out, _ = luma("stats", root / "run" / "3", "--quiet")
    assert (code, float(out)) == (0, found["total"]["bits_per_parameter"])


@pytest.mark.parametrize("columns", [80, 200])
def test_stats_fit_the_line(luma, root, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = luma("stats", root / "run" / "3")
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out
    assert ("m zero" in out) == (columns == 200)


def test_stats_show_block_scales_by_power_of_two(luma, luma_json, root):
    scale = luma_json("stats", root / "run" / "3")["total"]["moments"][0]["scale"]
    _, out, _ = luma("stats", root / "run" / "3")
    (line,) = [line for line in out.splitlines() if line.startswith("m scales")]
    first, counts = scale["histogram"]["first"], scale["histogram"]["counts"]
    bars = line.split(f"2^{first} ")[1].split(f" 2^{first + len(counts)},")[0]
    assert len(bars) == len(counts)
    assert bars[counts.index(max(counts))] == "█"
    assert all((bar == " ") == (count == 0) for bar, count in zip(bars, counts, strict=True))
    assert f"{scale['blocks']:,} blocks" in line


def test_stats_of_an_adamw_file_are_those_of_its_checkpoint(luma_json, root):
    ours = luma_json("stats", root / "run" / "3")["total"]
    theirs = luma_json("stats", root / "adamw.pt")["total"]
    assert ours["update"] == theirs["update"]
    assert theirs["moments"][0]["codec"] == "fp32"


def test_verify_finds_nothing_wrong(luma, luma_json, root):
    found = luma_json("verify", root / "run" / "3")
    assert set(found) == documented_keys("verify")
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["bytes"] == sum(f.stat().st_size for f in (root / "run" / "3").iterdir())
    assert luma("verify", root / "run" / "3")[1].startswith("ok  ")
    assert luma("verify", root / "run" / "3", "-q") == (0, "", "")


def test_verify_names_the_damaged_file(luma, tmp_path):
    checkpoint.save(tmp_path, optimizer=trained(0))
    shard = next(tmp_path.glob("optimizer-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, out, _ = luma("verify", tmp_path)
    assert code == 1
    assert shard.name in out
    assert "corrupt" in out
    code, out, _ = luma("verify", tmp_path, "--json")
    assert code == 1
    assert [problem["file"] for problem in json.loads(out)["problems"]] == [shard.name]


def test_diff_of_a_state_with_itself_and_another(luma, luma_json, root):
    a, b = root / "run" / "3", root / "run" / "4"
    same = luma_json("diff", a, a)
    assert set(same) == documented_keys("diff")
    assert same["identical"] is True
    assert same["total"]["update"]["relative_rms"] == 0
    other = luma_json("diff", a, b)
    assert other["identical"] is False
    assert other["total"]["update"]["relative_rms"] > 0.1
    assert other["total"]["moments"][0]["codes_differ_share"] > 0.9
    assert luma("diff", a, b, "-q") == (0, "different\n", "")
    _, out, _ = luma("diff", a, a)
    assert "2 of 2 parameters are stored identically" in out


def test_diff_across_formats_tells_names_only_one_has(luma, luma_json, root, tmp_path):
    state = torch.load(root / "adamw.pt", weights_only=True)
    state["param_groups"][0]["param_names"][1] = "other"
    torch.save(state, tmp_path / "other.pt")
    found = luma_json("diff", root / "run" / "3", tmp_path / "other.pt")
    assert (found["only_in_a"], found["only_in_b"]) == (["h.bias"], ["other"])
    assert found["parameters"][0]["update"]["relative_rms"] == 0
    _, out, _ = luma("diff", root / "run" / "3", tmp_path / "other.pt")
    assert "only in" in out


def test_convert_there_and_back(luma, luma_json, root, tmp_path):
    there = luma_json("convert", root / "run" / "3", tmp_path / "a.pt", "--to", "adamw")
    assert set(there) == documented_keys("convert")
    assert there["result_bytes"] == (tmp_path / "a.pt").stat().st_size
    code, out, _ = luma("convert", tmp_path / "a.pt", tmp_path / "back", "--to", "luma")
    assert code == 0
    assert "2,056 elements" in out
    found = luma_json("diff", root / "run" / "3", tmp_path / "back")
    assert found["total"]["update"]["differing"] == 0


def test_convert_options_reach_the_checkpoint(luma, tmp_path, root):
    options = ["--block-size", "0", "--compression", "none", "--seed", "7", "-q"]
    code, out, _ = luma("convert", root / "adamw.pt", tmp_path / "c", "--to", "luma", *options)
    assert (code, out) == (0, f"{tmp_path / 'c'}\n")
    with checkpoint.open(tmp_path / "c") as opened:
        assert opened.manifest.compression == "none"
        assert opened.manifest.groups[0]["seed"] == 7
        assert opened.manifest.groups[0]["codecs"]["exp_avg"]["block_size"] is None


def test_convert_replaces_only_when_told(luma, root, tmp_path):
    target = tmp_path / "a.pt"
    target.write_bytes(b"mine")
    arguments = ["convert", root / "run" / "3", target, "--to", "adamw"]
    code, out, err = luma(*arguments)
    assert (code, out) == (4, "")
    assert f"luma convert {root / 'run' / '3'} {target} --to adamw --overwrite" in err
    assert target.read_bytes() == b"mine"
    assert luma(*arguments, "--overwrite")[0] == 0
    assert target.read_bytes() != b"mine"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_work_shows_a_bar_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr("luma_client.console.output._SHORT_SECONDS", -1.0)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Output().progress("measuring") as progress:
            progress(1, 2)
        assert ("measuring" in stream.getvalue()) == shown


def test_names_are_printed_as_they_are(luma, tmp_path):
    param = torch.nn.Parameter(torch.randn(4, 64))
    optimizer = LUMA([("w[red] :smile:", param)], seed=0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    checkpoint.save(tmp_path, optimizer=optimizer)
    assert "w[red] :smile:" in luma("stats", tmp_path)[1]
