"""The demo's work, step by step; printing is left to others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from luma_client.console.sources import ForeignState
from luma_client.demo.data import Corpus
from luma_client.demo.folder import DemoFolder
from luma_client.demo.model import GPT, ModelConfig
from luma_client.demo.results import Conversion, Resume, RunResult, Sizes
from luma_client.demo.train import (
    OnStep,
    Run,
    TrainOptions,
    advance,
    held_out_loss,
    parameter_groups,
    state_bytes,
)
from luma_core import LUMA, checkpoint, convert, stats

ADAMW = "AdamW"
LUMA_NAME = "LUMA"

T = TypeVar("T", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class Workshop:
    """What every step needs.

    Attributes:
        corpus: the text.
        model: sizes of the model.
        options: how to train.
        device: where to train.
        folder: where to write.
    """

    corpus: Corpus
    model: ModelConfig
    options: TrainOptions
    device: torch.device
    folder: DemoFolder

    def new_model(self, seed: int) -> GPT:
        """Return a model whose weights depend on ``seed`` only."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return GPT(self.model).to(self.device)

    def adamw(self, model: GPT) -> torch.optim.AdamW:
        """Return AdamW over a model."""
        options = self.options
        groups = parameter_groups(model, options)
        return torch.optim.AdamW(groups, lr=options.peak_lr, betas=options.betas)

    def luma(self, model: GPT) -> LUMA:
        """Return LUMA over a model, with the options that `adamw` uses."""
        options = self.options
        groups = parameter_groups(model, options)
        return LUMA(groups, lr=options.peak_lr, betas=options.betas, seed=options.seed)

    def train(self, run: Run, at_checkpoint: Callable[[], None], on_step: OnStep) -> None:
        """Train ``run`` to its end, calling ``at_checkpoint`` once on the way."""
        step = self.folder.step
        advance(run, self.corpus, self.options, until=step, on_step=on_step)
        at_checkpoint()
        self.finish(run, on_step)

    def finish(self, run: Run, on_step: OnStep) -> None:
        """Train ``run`` from where it is to its end."""
        advance(run, self.corpus, self.options, until=self.options.steps, on_step=on_step)


def train_adamw(shop: Workshop, on_step: OnStep) -> Run:
    """Train with AdamW; its state at the checkpoint's step goes to a file."""
    model = shop.new_model(shop.options.seed)
    run = Run(ADAMW, model, shop.adamw(model))
    shop.train(run, lambda: torch.save(run.optimizer.state_dict(), shop.folder.adamw_file), on_step)
    return run


def train_luma(shop: Workshop, on_step: OnStep) -> tuple[Run, LUMA]:
    """Train with LUMA from the same weights on the same batches, saving a checkpoint."""
    model = shop.new_model(shop.options.seed)
    optimizer = shop.luma(model)
    run = Run(LUMA_NAME, model, optimizer)

    def save() -> None:
        checkpoint.save(shop.folder.checkpoint, optimizer=optimizer, model=model)

    shop.train(run, save, on_step)
    return run, optimizer


def run_result(run: Run) -> RunResult:
    """Return a run's measurements."""
    elements = sum(p.numel() for p in run.model.parameters())
    bytes_ = state_bytes(run.optimizer)
    return RunResult(
        name=run.name,
        held_out_loss=run.held_out[-1][1],
        state_bytes=bytes_,
        bytes_per_parameter=bytes_ / elements,
        optimizer_ms_per_step=run.optimizer_ms_per_step,
        losses=tuple(run.losses),
        held_out=tuple(run.held_out),
    )


def measure_sizes(folder: DemoFolder) -> Sizes:
    """Measure the checkpoint's files and AdamW's."""
    with checkpoint.open(folder.checkpoint) as opened:
        manifest = opened.manifest
    files = sorted((path.name, path.stat().st_size) for path in folder.checkpoint.iterdir())
    shards = {file.name for file in manifest.files_of("optimizer")}
    return Sizes(
        adamw_file_bytes=folder.adamw_file.stat().st_size,
        checkpoint_state_bytes=sum(size for name, size in files if name in shards),
        checkpoint_total_bytes=sum(size for _, size in files),
        files=tuple(files),
    )


def convert_and_continue(shop: Workshop, on_step: OnStep) -> Conversion:
    """Convert LUMA to AdamW, train on with AdamW, convert back, and measure the coding error."""
    folder = shop.folder
    convert.convert(folder.checkpoint, folder.converted_file, to="adamw", overwrite=True)
    model = shop.new_model(shop.options.seed + 1)
    checkpoint.load(folder.checkpoint, model=model)
    optimizer = shop.adamw(model)
    optimizer.load_state_dict(torch.load(folder.converted_file, weights_only=True))
    run = Run("LUMA, then AdamW", model, optimizer, step=folder.step)
    run.held_out.append((run.step, held_out_loss(model, shop.corpus)))
    shop.finish(run, on_step)

    convert.convert(
        folder.converted_file, folder.round_trip, to="luma", overwrite=True, seed=shop.options.seed
    )
    with checkpoint.open(folder.checkpoint) as a, checkpoint.open(folder.round_trip) as b:
        back = stats.diff(a, b).total
    convert.convert(folder.adamw_file, folder.from_adamw, to="luma", overwrite=True)
    true_state = ForeignState(convert.open_source(folder.adamw_file))
    with checkpoint.open(folder.from_adamw) as coded:
        total = stats.diff(true_state, coded).total
    errors = {moment.moment: moment.error for moment in total.moments}
    return Conversion(
        m=errors["exp_avg"],
        v=errors["exp_avg_sq"],
        update=total.update,
        round_trip_identical=_unchanged(back),
        round_trip_codes_share=1.0 - max(m.codes_differ_share or 0.0 for m in back.moments),
        continued_steps=run.step - run.begin_step,
        continued=tuple(run.held_out),
    )


def _unchanged(total: stats.TotalDiff) -> bool:
    errors = [total.update, *(moment.error for moment in total.moments)]
    return all(error.elements > 0 and error.differing == 0 for error in errors)


def resume(shop: Workshop, unstopped: Run, unstopped_luma: LUMA, on_step: OnStep) -> Resume:
    """Load the checkpoint into a new model and optimizer, train on, and compare bit for bit."""
    model = shop.new_model(shop.options.seed + 2)
    optimizer = shop.luma(model)
    checkpoint.load(shop.folder.checkpoint, optimizer=optimizer, model=model)
    run = Run("LUMA, resumed", model, optimizer, step=shop.folder.step)
    shop.finish(run, on_step)
    ours, theirs = model.state_dict(), unstopped.model.state_dict()
    same = all(torch.equal(_bits(ours[name]), _bits(theirs[name])) for name in theirs)
    return Resume(
        steps=run.step - run.begin_step,
        parameters_identical=same and ours.keys() == theirs.keys(),
        state_identical=stats.diff(unstopped_luma, optimizer).identical,
        weights_compared=sum(value.numel() for value in theirs.values()),
    )


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def smoothed(curve: tuple[tuple[int, float], ...], window: int) -> tuple[tuple[int, float], ...]:
    """Return means over consecutive windows of steps, each at its last step."""
    edges = [*range(0, len(curve), window), len(curve)]
    parts = [curve[a:b] for a, b in pairwise(edges) if b > a]
    return tuple((part[-1][0], math.fsum(v for _, v in part) / len(part)) for part in parts)
