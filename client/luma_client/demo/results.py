"""What the demo measured; the fields are the keys of ``luma demo --json`` and ``demo.json``."""

from __future__ import annotations

from dataclasses import dataclass

from luma_client.demo.train import Point
from luma_core.stats import CheckpointStats, ErrorStats

MAX_LOSS_GAP = 0.005
"""Largest relative difference of the held-out losses that passes."""

MAX_UPDATE_ERROR = 1e-3
"""Largest relative RMS error of the update after one encoding that passes."""


@dataclass(frozen=True)
class Check:
    """A promise and whether this run kept it."""

    name: str
    ok: bool
    measured: str


@dataclass(frozen=True)
class Setup:
    """What was trained on what.

    Attributes:
        device: ``cpu``, or the name of the GPU.
        torch_version: version of PyTorch.
        parameters: elements of all parameters of the model.
        tensors: number of parameter tensors.
        train_bytes: bytes of training text.
        held_out_bytes: bytes of held-out text.
        steps: steps of every run.
        checkpoint_step: step at which state is saved, converted and resumed.
        tokens_per_step: bytes of text per step.
        seed: of initialisation, batches and rounding noise.
    """

    device: str
    torch_version: str
    parameters: int
    tensors: int
    train_bytes: int
    held_out_bytes: int
    steps: int
    checkpoint_step: int
    tokens_per_step: int
    seed: int


@dataclass(frozen=True)
class RunResult:
    """One training run.

    Attributes:
        name: the optimizer.
        held_out_loss: after the last step, nats per byte.
        state_bytes: sum over the tensors in ``optimizer.state``.
        bytes_per_parameter: that over the model's parameters.
        optimizer_ms_per_step: mean time of ``optimizer.step()``.
        losses: step and loss of each batch.
        held_out: step and held-out loss.
    """

    name: str
    held_out_loss: float
    state_bytes: int
    bytes_per_parameter: float
    optimizer_ms_per_step: float
    losses: tuple[Point, ...]
    held_out: tuple[Point, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes on disk, in bytes.

    Attributes:
        adamw_file_bytes: ``torch.save`` of the AdamW state dict.
        checkpoint_state_bytes: shards of LUMA's optimizer state.
        checkpoint_total_bytes: the whole checkpoint, with the model's weights.
        files: name and size of each file of the checkpoint.
    """

    adamw_file_bytes: int
    checkpoint_state_bytes: int
    checkpoint_total_bytes: int
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Conversion:
    """State on its way from one form to the other.

    Attributes:
        m: error of AdamW's true first moment, coded by LUMA.
        v: of its second moment.
        update: of ``m_hat / (sqrt(v_hat) + eps)``.
        round_trip_identical: LUMA to AdamW to LUMA changes no value of m, v or the update.
        round_trip_codes_share: share of codes that are equal after that. A block whose largest
            value is a power of two may be coded on a grid twice as fine, with equal values.
        continued_steps: steps that AdamW took from the converted state.
        continued: the held-out loss on the way, beginning where AdamW took over.
    """

    m: ErrorStats
    v: ErrorStats
    update: ErrorStats
    round_trip_identical: bool
    round_trip_codes_share: float
    continued_steps: int
    continued: tuple[Point, ...]


@dataclass(frozen=True)
class Resume:
    """The run that was resumed, against the one that never stopped.

    Attributes:
        steps: steps after the checkpoint.
        parameters_identical: every weight is equal, bit for bit.
        state_identical: every code, scale and counter is equal, bit for bit.
        weights_compared: number of weights.
    """

    steps: int
    parameters_identical: bool
    state_identical: bool
    weights_compared: int


@dataclass(frozen=True)
class DemoResult:
    """Everything a demo run measured.

    Attributes:
        ok: whether all checks passed.
        checks: the promises.
        setup: what was trained on what.
        training: AdamW's and LUMA's run.
        loss_gap: LUMA's held-out loss over AdamW's, less 1.
        sizes: sizes on disk.
        conversion: between LUMA and AdamW.
        resume: from the checkpoint.
        stats: what the server said about the checkpoint.
        server: the URL that was asked.
        report: the HTML report.
        seconds: duration of the whole demo.
    """

    ok: bool
    checks: tuple[Check, ...]
    setup: Setup
    training: tuple[RunResult, RunResult]
    loss_gap: float
    sizes: Sizes
    conversion: Conversion
    resume: Resume
    stats: CheckpointStats
    server: str
    report: str
    seconds: float
