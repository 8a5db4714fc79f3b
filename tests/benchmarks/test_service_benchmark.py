"""The benchmark of the service measures what it says, on very small things."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.service import __main__ as program
from benchmarks.service import data, load, rows
from luma_core import checkpoint


def measured(monkeypatch, tmp_path: Path, *groups: str) -> list[dict]:
    target = tmp_path / "found.json"
    arguments = ["--scale", "0.0005", "--rounds", "1", "--folder", str(tmp_path), "--only", *groups]
    monkeypatch.setattr(sys, "argv", ["service", *arguments, "--json", str(target)])
    program.main()
    found: list[dict] = json.loads(target.read_text())["rows"]
    return found


def test_rows_of_what_needs_no_other_program(monkeypatch, tmp_path, capsys):
    found = measured(monkeypatch, tmp_path, "push", "memory", "stats", "first")
    assert len(found) == 8
    assert all(row["value"] >= 0 for row in found)
    assert sum(row["target"] is not None for row in found) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(found)


def test_without_nginx_pull_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "binary", lambda _: None)
    assert measured(monkeypatch, tmp_path, "pull") == []
    assert "pull: skipped" in capsys.readouterr().out


@pytest.mark.heavy
def test_listing_of_a_folder_and_of_a_bucket(monkeypatch, tmp_path):
    found = measured(monkeypatch, tmp_path, "listing")
    assert len(found) in (2, 5)


@pytest.mark.parametrize(
    ("value", "target", "at_most", "met"),
    [(1, 2, False, False), (2, 2, False, True), (3, 2, True, False), (3, None, False, None)],
)
def test_whether_a_target_is_met(value, target, at_most, met):
    assert rows.Row("x", value, "", target, at_most).met is met


def test_quantiles():
    times = tuple(float(i) for i in range(100))
    assert load.Load(1.0, times, 0).quantile(0.5) == 50
    assert load.Load(1.0, times, 0).quantile(0.99) == 99
    assert load.Load(1.0, (7.0,), 0).quantile(0.99) == 7


def test_stamped_files_are_as_their_manifest_says_and_new_to_a_server(tmp_path):
    place = tmp_path / "c"
    manifest = data.save_large(place, 1)
    one, other = (data.Stamped(place, manifest, number) for number in (1, 2))
    assert one.manifest.digest != other.manifest.digest
    (entry,) = one.manifest.files
    whole = memoryview(bytearray(entry.bytes))
    assert one.read_into(entry.name, 0, whole) == entry.bytes
    part = memoryview(bytearray(40))
    one.read_into(entry.name, 8, part)
    assert part == whole[8:48]
    assert bytes(whole[data.STAMP_BYTES :]) == (place / entry.name).read_bytes()[16:]


def test_many_checkpoints_have_manifests_of_their_own(tmp_path):
    data.save_wide(tmp_path / "one", 1)
    data.save_many(str(tmp_path / "many"), tmp_path / "one", 5)
    found = [checkpoint.open(path.parent) for path in (tmp_path / "many").rglob("luma.json")]
    assert len({one.manifest.digest for one in found}) == 5
    assert checkpoint.verify(found[0].url).ok
