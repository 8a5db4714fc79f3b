"""The command from end to end: what is paired is equal, and what is measured is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fidelity import __main__ as command
from benchmarks.fidelity.optimizers import OPTIMIZERS, Entry, Job
from benchmarks.fidelity.settings import SIZES
from benchmarks.fidelity.tokens import Tokens
from benchmarks.fidelity.training import Plan, Trainer

VOCABULARY = 64


@pytest.fixture(autouse=True)
def _precision() -> Any:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Write tokens that follow one another in a way that can be learnt."""
    generator = np.random.default_rng(0)
    steps = generator.integers(1, 3, 4000)
    row = (np.cumsum(steps) % VOCABULARY).astype(np.uint16)
    path = tmp_path / "tokens.npz"
    Tokens(row[:3500], row[3500:], vocab_size=VOCABULARY).save(path)
    return path


def run(tokens: Path, json_file: Path, *more: str) -> dict[str, Any]:
    arguments = ["--tokens", str(tokens), "--size", "tiny", "--device", "cpu", "--steps", "4"]
    arguments += ["--batch-tokens", "128", "--evaluations", "2", "--json", str(json_file), *more]
    assert command.main(arguments) == 0
    values: dict[str, Any] = json.loads(json_file.read_text())
    return values


def test_two_optimizers_three_rates_two_seeds(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("--lrs", "1e-3,3e-3,1e-2", "--seeds", "0,1")
    values = run(tokens, tmp_path / "r.json", *sweep)
    runs = values["runs"]
    assert len(runs) == 2 * (3 + 1)
    for seed in (0, 1):
        mine = [run for run in runs if run["seed"] == seed]
        assert {run["optimizer"] for run in mine} == {"adamw", "luma"}
        assert len({run["initial_digest"] for run in mine}) == 1
        assert len({run["order_digest"] for run in mine}) == 1
    assert len({run["initial_digest"] for run in runs}) == 2
    assert len({run["order_digest"] for run in runs}) == 2
    for name in ("adamw", "luma"):
        first = {
            run["lr"]: run["held_out"]
            for run in runs
            if (run["optimizer"], run["seed"]) == (name, 0)
        }
        best = [run["lr"] for run in runs if (run["optimizer"], run["seed"]) == (name, 1)]
        assert best == [min(first, key=lambda lr: first[lr])]
    bits = {run["optimizer"]: run["bits_per_parameter"] for run in runs}
    assert 64 <= bits["adamw"] < 64.1
    assert 32 < bits["luma"] < 33
    printed = capsys.readouterr().out
    assert "| luma | 0" in printed
    assert command.main(["--from-json", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out == printed


def test_resume_makes_only_the_runs_that_are_missing(tokens: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    first = run(tokens, file, "--lrs", "1e-3", "--optimizers", "adamw")["runs"]
    both = run(tokens, file, "--lrs", "1e-3,3e-3", "--optimizers", "adamw", "--resume")["runs"]
    assert both[0] == first[0]
    assert [run["lr"] for run in both] == [1e-3, 3e-3]


def test_no_run_is_begun_that_would_end_too_late(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.json"
    run(tokens, file, "--lrs", "1e-3", "--optimizers", "adamw")
    more = ("--lrs", "1e-3,3e-3", "--optimizers", "adamw", "--resume", "--budget-seconds", "1e-3")
    assert len(run(tokens, file, *more)["runs"]) == 1
    assert "continue with --resume" in capsys.readouterr().err


def test_same_run_twice_is_the_same(tokens: Path) -> None:
    trainer = Trainer(SIZES["tiny"], Tokens.load(tokens), "cpu", Plan(4, 128, "cosine", 1))
    first, other, again = (
        trainer.run("luma", OPTIMIZERS["luma"], lr=1e-2, seed=seed) for seed in (0, 1, 0)
    )
    assert first.held_out == again.held_out
    assert first.held_out != other.held_out


def test_training_learns(tokens: Path) -> None:
    trainer = Trainer(SIZES["tiny"], Tokens.load(tokens), "cpu", Plan(60, 512, "cosine", 2))
    made = trainer.run("adamw", OPTIMIZERS["adamw"], lr=1e-2, seed=0)
    assert made.held_out is not None
    assert made.held_out < 2.0 < np.log(VOCABULARY)
    assert [step for step, _ in made.curve] == [30, 60]


def exploding(job: Job) -> torch.optim.Optimizer:
    """Build an optimizer whose parameters overflow in two steps."""
    return torch.optim.SGD(job.model.parameters(), weight_decay=1e30)


def test_divergence_is_reported_and_the_others_go_on(
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(OPTIMIZERS, "exploding", Entry("torch", exploding))
    names = ("--lrs", "1e-3", "--optimizers", "exploding,adamw", "--seeds", "0,1")
    runs = run(tokens, tmp_path / "r.json", *names)["runs"]
    made = [(run["optimizer"], run["seed"], run["diverged"]) for run in runs]
    assert made == [("adamw", 0, False), ("exploding", 0, True), ("adamw", 1, False)]
    assert runs[1]["held_out"] is None
    assert runs[1]["curve"] == [[2, None]]
    assert "| - | diverged |" in capsys.readouterr().out


def test_what_cannot_run_is_skipped_with_its_reason(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job) -> torch.optim.Optimizer:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setitem(OPTIMIZERS, "failing", Entry("torch", fail))
    monkeypatch.setitem(OPTIMIZERS, "absent", Entry("no-such-distribution", fail))
    names = ("--lrs", "1e-3", "--optimizers", "adamw,failing,absent")
    values = run(tokens, tmp_path / "r.json", *names)
    assert [run["optimizer"] for run in values["runs"]] == ["adamw"]
    assert values["skipped"]["failing"] == "RuntimeError: no such kernel"
    assert "not installed" in values["skipped"]["absent"]


def test_learning_rates_are_scaled_for_rules_of_another_scale(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = OPTIMIZERS["adamw"]
    monkeypatch.setitem(OPTIMIZERS, "other", Entry("torch", entry.build, lr_scale=10.0))
    names = ("--lrs", "6e-4", "--optimizers", "other")
    assert [r["lr"] for r in run(tokens, tmp_path / "r.json", *names)["runs"]] == [6e-3]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--size", "gpt2"], "needs --data or --tokens"),
        (["--optimizers", "sgd"], "'sgd' is unknown"),
        (["--tokens", "/nowhere.npz"], "cannot be read"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--size", "tiny", "--device", "cpu", *more]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_a_text_becomes_tokens_on_another_machine(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text = tmp_path / "text"
    text.write_text("".join(f"Sentence {i} says something.\n\n" for i in range(2000)))
    options = ["--size", "tiny", "--device", "cpu", "--data", str(text)]
    cache = ["--cache", str(tmp_path / "cache")]
    assert command.main([*options, *cache, "--prepare", str(tmp_path / "t.npz")]) == 0
    assert command.main([*options, *cache, "--prepare", str(tmp_path / "u.npz")]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    made = Tokens.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(made.train, Tokens.load(tmp_path / "u.npz").train)
    assert len(made.held_out) > 100
