"""The demo at a tiny size: its numbers, its checks, its files and its report."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from luma_client.cli.app import run
from luma_client.console.output import Output
from luma_client.demo import DemoOptions, run_demo
from luma_client.demo.data import Corpus
from luma_client.demo.folder import DemoFolder
from luma_client.demo.model import GPT, ModelConfig
from luma_client.demo.report.chart import Axis, histogram, shown_bins
from luma_client.demo.results import DemoResult
from luma_client.demo.steps import Workshop, train_adamw
from luma_client.demo.train import TrainOptions
from luma_core import checkpoint
from luma_core.errors import CheckpointExistsError, StorageError

TINY = ModelConfig(layers=1, width=64, heads=2, context=32)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = Corpus.load()
    return Corpus(train=whole.train[:20_000], held_out=whole.held_out[:2_000])


def options(out: Path) -> DemoOptions:
    return DemoOptions(out=out, steps=12, model=TINY, batch_size=4, device="cpu")


@pytest.fixture
def tiny(tmp_path, corpus, monkeypatch) -> DemoOptions:
    monkeypatch.setattr(Corpus, "load", lambda: corpus)
    return options(tmp_path / "out")


class Finished(NamedTuple):
    """A demo that ran, with what it printed to standard output and standard error."""

    result: DemoResult
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus) -> Finished:
    folder = tmp_path_factory.mktemp("demo") / "out"
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(Corpus, "load", lambda: corpus)
        result = run_demo(options(folder), Output())
    return Finished(result, folder, out.getvalue(), err.getvalue())


def test_everything_is_measured_written_and_shown(finished):
    result, folder, out, err = finished
    assert result.ok, [check for check in result.checks if not check.ok]
    adamw, luma = result.training
    assert f"{adamw.held_out_loss:.4f}" in out
    assert f"{luma.bytes_per_parameter:.3f}" in out
    assert "all checks passed" in out
    assert "LUMA: step 12" in err
    assert adamw.bytes_per_parameter == pytest.approx(8, abs=0.01)
    assert luma.bytes_per_parameter < 4.5
    assert [step for step, _ in luma.losses] == list(range(1, 13))
    assert adamw.losses[0] == luma.losses[0]
    assert result.resume.parameters_identical
    assert result.resume.state_identical
    assert 0 < (result.conversion.update.relative_rms or 0) < 1e-3
    assert result.conversion.continued[0][0] == result.setup.checkpoint_step == 11

    # The server's root layout, and a checkpoint anybody can verify.
    assert checkpoint.verify(folder / "demo" / "11").ok
    sizes = result.sizes
    files = list((folder / "demo" / "11").iterdir())
    assert sizes.checkpoint_total_bytes == sum(path.stat().st_size for path in files)
    assert sizes.adamw_file_bytes == (folder / "adamw.pt").stat().st_size
    assert json.loads((folder / "demo.json").read_text())["loss_gap"] == result.loss_gap


def test_the_report_is_one_file_that_fetches_nothing(finished):
    result = finished.result
    page = Path(result.report).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<(script|link|img|iframe)|\b(src|href)=|url\(|@import", page)
    assert set(re.findall(r"https?://[^\s<.]+", page)) <= {"http://127"}
    assert page.count("<svg viewBox") >= 5
    for told in ("step", "loss, nats per byte", "share of elements, %", "<title>", "legend"):
        assert told in page
    for entry in result.stats.parameters:
        assert entry.name in page
    assert "prefers-color-scheme: dark" in page


def test_the_same_seed_gives_the_same_run(tmp_path, corpus):
    def losses(seed: int) -> list[tuple[int, float]]:
        train_options = TrainOptions(steps=3, batch_size=4, seed=seed)
        folder = DemoFolder(tmp_path, 3)
        shop = Workshop(corpus, TINY, train_options, torch.device("cpu"), folder)
        return train_adamw(shop, lambda _run: None).losses

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_json_and_quiet_print_nothing_else(tiny, capsys, monkeypatch):
    monkeypatch.setattr("luma_client.demo.DemoOptions", lambda **_: tiny)
    assert run(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    from luma_client.cli.demo import EPILOG

    assert set(found) == set(EPILOG.split("JSON keys: ")[1].split(", "))
    assert run(["demo", "-q"]) == 0
    assert capsys.readouterr() == (f"{tiny.out / 'report.html'}\n", "")


def test_a_failed_check_is_told_and_ends_with_1(tiny, capsys, monkeypatch):
    monkeypatch.setattr("luma_client.demo.DemoOptions", lambda **_: tiny)
    monkeypatch.setattr("luma_client.demo.run.MAX_UPDATE_ERROR", 1e-9)
    assert run(["demo"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  RMS error of the update" in out
    assert "SOME CHECKS FAILED" in out
    assert "Some checks failed" in (tiny.out / "report.html").read_text(encoding="utf-8")


def test_a_resumed_run_that_differs_is_told(tiny, monkeypatch):
    original = checkpoint.load

    def load(url, *, optimizer=None, model=None):
        loaded = original(url, optimizer=optimizer, model=model)
        if optimizer is not None and model is not None:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] += 1e-3
        return loaded

    monkeypatch.setattr("luma_core.checkpoint.load", load)
    result = run_demo(tiny, Output(quiet=True))
    assert not result.ok
    assert not result.resume.parameters_identical


def test_an_earlier_demo_is_replaced_and_other_files_are_not(tiny, tmp_path):
    folder = DemoFolder(tiny.out, 5)
    folder.prepare()
    folder.checkpoint.mkdir(parents=True)
    (tiny.out / "mine.txt").write_text("mine")
    DemoFolder(tiny.out, 7).prepare()
    assert not folder.checkpoint.exists()
    assert (tiny.out / "mine.txt").read_text() == "mine"

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointExistsError, match="did not write"):
        DemoFolder(foreign, 5).prepare()
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]
    with pytest.raises(StorageError):
        DemoFolder(foreign / "mine.txt", 5).prepare()


def test_held_out_text_is_never_trained_on():
    corpus = Corpus.from_text("a" * 900 + "b" * 100)
    assert corpus.train.unique().tolist() == [ord("a")]
    assert corpus.held_out.unique().tolist() == [ord("b")]
    batches = list(corpus.held_out_batches(batch_size=2, context=9))
    assert sum(inputs.numel() for inputs, _ in batches) == 99
    assert len(Corpus.load().train) > 300_000


def test_batches_depend_on_seed_and_step_only(corpus):
    def batch(seed: int, step: int) -> torch.Tensor:
        inputs, targets = corpus.batch(seed=seed, step=step, batch_size=3, context=8)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        return inputs

    torch.manual_seed(0)
    first = batch(1, 2)
    torch.manual_seed(1)
    assert torch.equal(first, batch(1, 2))
    assert not torch.equal(first, batch(1, 3))
    assert not torch.equal(first, batch(2, 2))


def test_the_model_is_as_large_as_promised_and_causal():
    model = GPT(ModelConfig())
    assert sum(p.numel() for p in model.parameters()) >= 1_000_000
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert not torch.equal(a[:, -1], b[:, -1])


def test_the_learning_rate_rises_and_falls():
    options = TrainOptions(steps=100, warmup_steps=10, peak_lr=1.0)
    rates = [options.learning_rate(step) for step in range(1, 101)]
    assert rates.index(max(rates)) == 9
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_ticks_are_round_and_inside():
    assert Axis("x", 0, 300).ticks(6) == [0, 50, 100, 150, 200, 250, 300]
    assert Axis("y", -0.013, 0.049).ticks(5) == [0.0, 0.02, 0.04]


def test_a_histogram_draws_every_shown_bin():
    counts = [0, 1, 50_000, 0, 50_000, 0]
    assert shown_bins(counts) == range(2, 5)
    svg = histogram(counts, list(range(7)), x_label="x", style="s1", title="t")
    assert svg.count("<rect") == 3
    assert "50,000 (50%)" in svg
    empty = histogram([0, 0], [0, 1, 2], x_label="x", style="s1", title="t")
    assert "no non-zero values" in empty


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_whole_demo_takes_at_most_three_minutes_of_two_cores(tmp_path):
    begin = sum(os.times()[:4])
    assert run(["demo", "--out", str(tmp_path / "demo")]) == 0
    # Of processors, not of the clock, which other work on the machine would be in.
    assert sum(os.times()[:4]) - begin < 2 * 180
