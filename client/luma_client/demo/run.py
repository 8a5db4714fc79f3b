"""The demo from begin to end: five steps, and whether they kept their promises."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from luma_client.client import Client
from luma_client.console.formats import signed_percent
from luma_client.console.output import Output
from luma_client.console.server_process import ServerProcess
from luma_client.demo.data import Corpus
from luma_client.demo.folder import RUN, DemoFolder
from luma_client.demo.model import ModelConfig
from luma_client.demo.report import render
from luma_client.demo.results import (
    MAX_LOSS_GAP,
    MAX_UPDATE_ERROR,
    Check,
    Conversion,
    DemoResult,
    Resume,
    RunResult,
    Setup,
    Sizes,
)
from luma_client.demo.steps import (
    Workshop,
    convert_and_continue,
    measure_sizes,
    resume,
    run_result,
    train_adamw,
    train_luma,
)
from luma_client.demo.train import TrainOptions, deterministic
from luma_client.demo.view import View, verdict
from luma_core import checkpoint
from luma_core.errors import BackendUnavailableError
from luma_core.paths import resolve_path
from luma_core.stats import CheckpointStats


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to run.

    Attributes:
        out: folder for checkpoints and the report; an earlier demo's output in it is replaced.
        steps: training steps; the last tenth is repeated from the checkpoint.
        seed: of initialisation, batches and rounding noise.
        device: ``auto`` takes CUDA where there is one.
        model: sizes of the model.
        batch_size: sequences per step.
    """

    out: Path
    steps: int = 200
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 16


@dataclass(frozen=True)
class _Measured:
    """The results of the first four steps."""

    setup: Setup
    training: tuple[RunResult, RunResult]
    sizes: Sizes
    conversion: Conversion
    resume: Resume
    verified: checkpoint.VerifyReport

    @property
    def loss_gap(self) -> float:
        adamw, luma = self.training
        return luma.held_out_loss / adamw.held_out_loss - 1


def run_demo(options: DemoOptions, output: Output) -> DemoResult:
    """Run the demo and print what it measures.

    Raises:
        BackendUnavailableError: CUDA was asked for and is not there, or the server is missing.
        CheckpointExistsError: the folder holds something else.
        StorageError: the folder cannot be written.
    """
    begin = time.monotonic()
    device = _device(options.device)
    ServerProcess.require()
    folder = DemoFolder(resolve_path(options.out), options.steps - max(options.steps // 10, 1))
    folder.prepare()
    shop = Workshop(
        Corpus.load(),
        options.model,
        TrainOptions(
            steps=options.steps,
            batch_size=options.batch_size,
            warmup_steps=min(20, options.steps // 5),
            evaluate_every=max(options.steps // 5, 1),
            seed=options.seed,
        ),
        device,
        folder,
    )
    view = View(output)
    with deterministic():
        measured = _train_and_convert(shop, view)
    result = _ask_and_report(measured, folder, view, begin)
    output.result(asdict(result), human=lambda: verdict(result), quiet=result.report)
    return result


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise BackendUnavailableError(
            "--device cuda: PyTorch finds no CUDA device.", hint="Use --device cpu."
        )
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def _setup(shop: Workshop) -> Setup:
    parameters = list(shop.new_model(shop.options.seed).parameters())
    cuda = shop.device.type == "cuda"
    return Setup(
        device=torch.cuda.get_device_name(shop.device) if cuda else "cpu",
        torch_version=torch.__version__,
        parameters=sum(p.numel() for p in parameters),
        tensors=len(parameters),
        train_bytes=len(shop.corpus.train),
        held_out_bytes=len(shop.corpus.held_out),
        steps=shop.options.steps,
        checkpoint_step=shop.folder.step,
        tokens_per_step=shop.options.batch_size * shop.model.context,
        seed=shop.options.seed,
    )


def _train_and_convert(shop: Workshop, view: View) -> _Measured:
    steps, middle = shop.options.steps, shop.folder.step
    setup = _setup(shop)
    view.setup(setup)
    view.step(1, "train with AdamW and with LUMA, from the same weights on the same batches")
    with view.training("AdamW", begin=0, steps=steps) as on_step:
        adamw = run_result(train_adamw(shop, on_step))
    with view.training("LUMA", begin=0, steps=steps) as on_step:
        run, optimizer = train_luma(shop, on_step)
    luma = run_result(run)
    view.trained((adamw, luma), luma.held_out_loss / adamw.held_out_loss - 1)

    view.step(2, "save")
    sizes = measure_sizes(shop.folder)
    verified = checkpoint.verify(shop.folder.checkpoint)
    view.saved(sizes, folder=str(shop.folder.checkpoint), step=middle)

    view.step(3, "convert to AdamW, train on with it, convert back")
    with view.training("LUMA, then AdamW", begin=middle, steps=steps) as on_step:
        conversion = convert_and_continue(shop, on_step)
    view.converted(conversion, luma_loss=luma.held_out_loss)

    view.step(4, "resume from the checkpoint")
    with view.training("LUMA, resumed", begin=middle, steps=steps) as on_step:
        resumed = resume(shop, run, optimizer, on_step)
    view.resumed(resumed)
    return _Measured(setup, (adamw, luma), sizes, conversion, resumed, verified)


def _ask_and_report(
    measured: _Measured, folder: DemoFolder, view: View, begin: float
) -> DemoResult:
    view.step(5, "ask the server, write the report")
    with (
        folder.server_log.open("wb") as log,
        ServerProcess(root=str(folder.root), log=log, more=["--no-auth"]) as server,
        Client(server.url) as client,
    ):
        url = server.url
        stats = client.stats(RUN, str(folder.step))
    checks = _checks(measured, stats)
    result = DemoResult(
        ok=all(check.ok for check in checks),
        checks=checks,
        setup=measured.setup,
        training=measured.training,
        loss_gap=measured.loss_gap,
        sizes=measured.sizes,
        conversion=measured.conversion,
        resume=measured.resume,
        stats=stats,
        server=url,
        report=str(folder.report),
        seconds=time.monotonic() - begin,
    )
    folder.report.write_text(render(result), encoding="utf-8")
    folder.write_results({"complete": True, **asdict(result)})
    view.served(result)
    return result


def _checks(measured: _Measured, stats: CheckpointStats) -> tuple[Check, ...]:
    conversion, resumed = measured.conversion, measured.resume
    adamw, luma = measured.training
    continued_gap = conversion.continued[-1][1] / adamw.held_out_loss - 1
    later = f"of the resumed run, {resumed.steps} steps on"
    return (
        _close("held-out loss of LUMA", measured.loss_gap),
        _close("held-out loss of AdamW, continued from LUMA's state,", continued_gap),
        Check(
            "every file of the checkpoint verifies",
            measured.verified.ok,
            f"{measured.verified.files} files",
        ),
        _small_error(conversion.update.relative_rms),
        _exact(
            "LUMA to AdamW to LUMA changes no value of m, v and the update",
            conversion.round_trip_identical,
        ),
        _exact(f"weights {later}", resumed.parameters_identical),
        _exact(f"state {later}", resumed.state_identical),
        Check(
            "the server tells the same size of state as measured in training",
            stats.total.state_bytes == luma.state_bytes,
            f"{stats.total.state_bytes:,} bytes",
        ),
    )


def _close(name: str, gap: float) -> Check:
    limit = f"{MAX_LOSS_GAP:.1%}"
    return Check(f"{name} within {limit} of AdamW", abs(gap) <= MAX_LOSS_GAP, signed_percent(gap))


def _small_error(error: float | None) -> Check:
    name = f"RMS error of the update at most {MAX_UPDATE_ERROR:.1%}"
    if error is None:
        return Check(name, False, "none")
    return Check(name, error <= MAX_UPDATE_ERROR, f"{error:.4%}")


def _exact(name: str, same: bool) -> Check:
    return Check(name, same, "bit-identical" if same else "different")
