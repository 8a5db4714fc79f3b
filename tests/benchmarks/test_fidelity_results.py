"""Gaps are paired by seed and taken between each optimizer's own best learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fidelity.report import plot, tables
from benchmarks.fidelity.results import Results, Run, equal_lr_gaps, gap
from luma_core.errors import ConfigurationError

RUN = Run(
    optimizer="adamw",
    version="1",
    lr=1e-3,
    seed=0,
    held_out=5.0,
    diverged=False,
    curve=((1, 5.0),),
    bits_per_parameter=64.0,
    step_ms=1.0,
    tokens_per_second=1e6,
    seconds=10.0,
    initial_digest="i",
    order_digest="o",
)
SETUP = {
    "machine": "a machine",
    "size": "tiny",
    "parameters": 1000,
    "steps": 10,
    "batch_tokens": 2048,
    "schedule": "cosine",
    "held_out_tokens": 1024,
}

MakeResults = Callable[[dict[tuple[str, float, int], float | None]], Results]


@pytest.fixture
def made_up() -> MakeResults:
    """Make results of held-out losses by (optimizer, lr, seed); ``None`` for one that diverged."""

    def make(losses: dict[tuple[str, float, int], float | None]) -> Results:
        runs = [
            replace(RUN, optimizer=name, lr=lr, seed=seed, held_out=value, diverged=value is None)
            for (name, lr, seed), value in losses.items()
        ]
        return Results(dict(SETUP), {"torch": "2"}, runs)

    return make


LOSSES = {
    ("adamw", 1e-3, 0): 5.0,
    ("adamw", 2e-3, 0): 4.5,
    ("adamw", 4e-3, 0): 4.8,
    ("adamw", 2e-3, 1): 4.7,
    ("luma", 1e-3, 0): 4.6,
    ("luma", 2e-3, 0): 4.65,
    ("luma", 4e-3, 0): None,
    ("luma", 1e-3, 1): 4.74,
}


def test_gap_pairs_seeds_at_each_best_learning_rate(made_up: MakeResults) -> None:
    results = made_up(LOSSES)
    assert results.best_lr("adamw") == 2e-3
    assert results.best_lr("luma") == 1e-3
    found = gap(results.at_best("luma"), results.at_best("adamw"))
    assert found is not None
    assert found.seeds == 2
    assert found.mean == pytest.approx((0.10 + 0.04) / 2)
    assert found.sd == pytest.approx(0.06 / 2**0.5)
    assert found.low == pytest.approx(0.04)
    assert found.high == pytest.approx(0.10)


def test_best_learning_rate_is_chosen_only_on_seeds_that_tried_all(made_up: MakeResults) -> None:
    results = made_up({**LOSSES, ("adamw", 2e-3, 1): 9.0})
    assert results.best_lr("adamw") == 2e-3


def test_gap_at_equal_learning_rate(made_up: MakeResults) -> None:
    gaps = equal_lr_gaps(made_up(LOSSES), "luma", "adamw")
    assert {lr: found.mean for lr, found in gaps.items()} == {
        1e-3: pytest.approx(-0.4),
        2e-3: pytest.approx(0.15),
        4e-3: float("inf"),
    }


def test_there_is_no_gap_without_a_baseline(made_up: MakeResults) -> None:
    results = made_up({("luma", 1e-3, 0): 4.6})
    assert gap(results.at_best("luma"), results.at_best("adamw")) is None
    assert "| luma | 1 | 64.00 | 0.001 | 4.6000 | - | - | - | 1 |" in tables(results)


def test_tables_show_what_diverged_and_what_was_skipped(made_up: MakeResults) -> None:
    results = made_up({**LOSSES, ("turboadam-0.2", 1e-3, 0): None})
    results.skipped["torchao-4bit"] = "torchao is not installed"
    text = tables(results)
    assert "| turboadam-0.2 | 1 | 64.00 | - | diverged |" in text
    assert "0.004: 1 of 1 diverged (1)" in text
    assert "| torchao-4bit |  | skipped: torchao is not installed |" in text
    assert "| luma | 1 | 64.00 | 0.001 (edge) | 4.6700 | +0.0700 | 0.0424 |" in text


def test_divergence_at_the_best_learning_rate_is_no_finite_gap(made_up: MakeResults) -> None:
    results = made_up({**LOSSES, ("luma", 1e-3, 1): None})
    assert "| luma | 1 | 64.00 | 0.001 (edge) | 1 of 2 diverged | diverged |" in tables(results)


def test_file_keeps_runs_and_resume_refuses_another_setup(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = Results(dict(SETUP), {"torch": "2"}, path=path)
    first.add(RUN)
    first.add(replace(RUN, seed=1, held_out=None, diverged=True, step_ms=None))
    again = Results(dict(SETUP), {"torch": "2"}, path=path)
    again.resume(path)
    assert again.runs == first.runs
    other = Results({**SETUP, "steps": 20}, {"torch": "2"})
    with pytest.raises(ConfigurationError, match="steps=10, now 20"):
        other.resume(path)


def test_file_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"benchmark": "step_time"}')
    with pytest.raises(ConfigurationError, match="step_time"):
        Results.load(path)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_is_drawn(made_up: MakeResults, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    plot(made_up({**LOSSES, ("turboadam-0.2", 1e-3, 0): None}), path)
    data = path.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
    else:
        assert b"<!-- luma -->" in data
        assert b"turboadam" not in data
