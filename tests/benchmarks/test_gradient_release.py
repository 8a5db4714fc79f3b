"""Stepping within backward needs no memory for gradients that were stepped, with equal losses."""

import json
from pathlib import Path

import pytest

from benchmarks import gradient_release

TINY = ["--device", "cpu", "--model", "tiny", "--tokens", "32"]


def test_tiny_gpt_saves_its_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "release.json"
    gradient_release.main([*TINY, "--steps", "2", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["equal_losses"]
    assert found["saved_share"] >= 0.8
    kept, sparse, released = found["rows"]
    assert kept["losses"] == released["losses"]
    assert len(kept["losses"]) == 3
    assert kept["step_bytes"] - kept["kept_bytes"] >= found["gradient_bytes"]
    assert released["step_bytes"] - released["kept_bytes"] < found["gradient_bytes"] / 100
    assert sparse["backward_bytes"] < kept["backward_bytes"]
    largest = found["largest_gradient_bytes"]
    assert released["backward_bytes"] - released["kept_bytes"] < 2.1 * largest
    assert "equal in every bit" in capsys.readouterr().out


def test_recomputing_needs_less_and_changes_no_loss() -> None:
    size = gradient_release.MODELS["tiny"]
    plain, recomputed = (
        gradient_release.measure(
            gradient_release.RELEASED,
            size,
            gradient_release.parse([*TINY, "--steps", "1", *arguments]),
        )
        for arguments in ([], ["--recompute"])
    )
    assert recomputed.losses == plain.losses
    assert recomputed.forward_bytes < plain.forward_bytes


def test_other_losses_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = gradient_release.measure

    def other(way: str, *args: object) -> gradient_release.Row:
        row = measure(way, *args)
        if way == gradient_release.RELEASED:
            row.losses[-1] += 1e-6
        return row

    monkeypatch.setattr(gradient_release, "measure", other)
    with pytest.raises(SystemExit, match="1"):
        gradient_release.main([*TINY, "--steps", "1"])
