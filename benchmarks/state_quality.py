"""How well n-bit codecs keep Adam's moments over many steps, and how small TurboAdam's state is.

``python -m benchmarks.state_quality [--steps 2000] [--blocks 96]``. Gradients are normal, with
a scale for each coordinate whose logarithm has standard deviation *sigma* within a block. Each
codec keeps the moments by itself, decoded, updated and coded again at every step; they are compared
with exact ones. TurboAdam 0.2.0 is measured if it is installed (``pip install turboadam==0.2.0``).
Sizes are those of all persistent tensors for the shapes of GPT-2 124M.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shapes import gpt2
from luma_core import TurboAdam, rounding
from luma_core.codecs import Codec, CoStateM, LogV, RootV, TableM
from luma_core.optim.presets import PRESETS

BLOCK_SIZE = 128
BETA1, BETA2 = 0.9, 0.999
SIGMAS = (0.3, 1.0, 2.0)

SECOND: tuple[tuple[str, Codec], ...] = (
    ("RootV, 2 bits, without rise", RootV(bits=2)),
    ("LogV, 4 bits", LogV(bits=4)),
    ("LogV, 5 bits, the 8bit preset", LogV(bits=5)),
    ("LogV, 8 bits", LogV(bits=8)),
)
FIRST: tuple[tuple[str, Codec], ...] = (
    ("CoState", CoStateM()),
    ("CoState, error feedback", CoStateM(feedback=BETA1)),
    ("TableM, 2 bits", TableM(bits=2)),
    ("TableM, 3 bits, the default", TableM(bits=3)),
    ("TableM, 4 bits", TableM(bits=4)),
)

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"preset": "8bit"},
    {"v_bits": 4, "v_floor": None},
    {"m_codec": "costate"},
    {"m_codec": "costate", "error_feedback": True},
)

Moment = Callable[[float, Tensor, int], Tensor]
"""Multiplies a moment, adds to it, stores it in step ``t`` and returns what is stored, decoded."""


@dataclass(frozen=True)
class SecondQuality:
    """How a stored second moment compares with the exact one.

    The grids are unbiased in the square root, so the mean of the moment itself is above 1.

    Attributes:
        sd_log_error: standard deviation of ``log(stored / exact)``.
        spread: standard deviation of ``log`` of the stored moment within a block, over the exact.
        median_ratio: median of ``stored / exact``.
        mean_ratio: mean of the stored over mean of the exact.
    """

    sd_log_error: float
    spread: float
    median_ratio: float
    mean_ratio: float


def stored_by(codec: Codec, blocks: int) -> Moment:
    """Return a moment that ``codec`` stores."""
    shape = (1, blocks * BLOCK_SIZE)
    fields = {key: f.view(1, blocks, -1) for key, f in codec.init(shape, "cpu").items()}

    def step(decay: float, added: Tensor, t: int) -> Tensor:
        nonlocal fields
        value = codec.decode(fields) * decay + added
        bits = rounding.random_bits(rounding.step_keys(1, t), 0, value.numel())
        fitted = codec.refit(value, fields)
        draw = rounding.second_draw(bits).view(value.shape) if codec.rounds else None
        fields = {**fitted, **codec.encode(value, fitted, draw)}
        return codec.decode(fields)

    return step


def stored_by_turboadam(bits: int, blocks: int) -> Moment:
    """Return a second moment as TurboAdam 0.2.0 stores it."""
    from turboadam import quantize

    state = quantize.initialize_v_state(
        (blocks * BLOCK_SIZE,), device=torch.device("cpu"), n_bits=bits, block_size=BLOCK_SIZE
    )

    def step(decay: float, added: Tensor, t: int) -> Tensor:
        value = quantize.decompress_v_state(state).view(added.shape) * decay + added
        stored: Tensor = quantize.recompress_v_state(state, value.view(-1), seed=t * 2654435761)
        return stored.view(value.shape)

    return step


def gradients(sigma: float, steps: int, blocks: int) -> Iterator[Tensor]:
    """Yield ``steps`` gradients, float32 ``[1, blocks, BLOCK_SIZE]``."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, blocks, BLOCK_SIZE)
    scale = 1e-3 * torch.exp(sigma * torch.randn(shape, generator=generator))
    scale *= torch.exp(3 * torch.rand(1, blocks, 1, generator=generator))
    for _ in range(steps):
        yield scale * torch.randn(shape, generator=generator)


def second_quality(moment: Moment, sigma: float, *, steps: int, blocks: int) -> SecondQuality:
    """Keep a second moment for ``steps`` steps and compare it with the exact one."""
    exact = torch.zeros(1, blocks, BLOCK_SIZE)
    stored = exact
    for t, grad in enumerate(gradients(sigma, steps, blocks), start=1):
        square = (1 - BETA2) * grad.square()
        exact = exact * BETA2 + square
        stored = moment(BETA2, square, t)
    error = (stored / exact).log()
    return SecondQuality(
        sd_log_error=float(error.std()),
        spread=float(stored.log().std(dim=-1).mean() / exact.log().std(dim=-1).mean()),
        median_ratio=float(error.median().exp()),
        mean_ratio=float(stored.mean() / exact.mean()),
    )


def first_error(moment: Moment, sigma: float, *, steps: int, blocks: int) -> float:
    """Return the relative RMS error of the stored ``m / sqrt(v)`` after ``steps`` steps."""
    exact = second = torch.zeros(1, blocks, BLOCK_SIZE)
    stored = exact
    for t, grad in enumerate(gradients(sigma, steps, blocks), start=1):
        exact = exact.lerp(grad, 1 - BETA1)
        second = second * BETA2 + (1 - BETA2) * grad.square()
        stored = moment(BETA1, (1 - BETA1) * grad, t)
    root = second.sqrt()
    return float(((stored - exact) / root).norm() / (exact / root).norm())


def gpt2_bits(options: dict[str, Any]) -> float:
    """Return TurboAdam's bits per parameter for GPT-2 124M, every persistent tensor counted."""
    shapes = gpt2()
    optimizer = TurboAdam([nn.Parameter(torch.empty(s, device="meta")) for s in shapes], **options)
    optimizer.init_state()
    state = (tensor for held in optimizer.state.values() for tensor in held.values())
    return 8 * sum(t.nbytes for t in state) / sum(torch.Size(s).numel() for s in shapes)


def print_second(name: str, moment: Callable[[], Moment], *, steps: int, blocks: int) -> None:
    """Print one row of second moments for each sigma."""
    for sigma in SIGMAS:
        found = second_quality(moment(), sigma, steps=steps, blocks=blocks)
        print(
            f"{name:<32}{sigma:>6}{found.sd_log_error:>18.3f}{found.spread:>9.3f}"
            f"{found.median_ratio:>9.3f}{found.mean_ratio:>7.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table for each moment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state_quality")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the second moment")
    parser.add_argument("--blocks", type=int, default=96, help=f"blocks of {BLOCK_SIZE} elements")
    options = parser.parse_args(arguments)
    sizes = {"steps": options.steps, "blocks": options.blocks}
    print(f"second moment after {options.steps} steps of beta2 = {BETA2}")
    print(f"{'codec':<32}{'sigma':>6}{'sd(log(v^/v))':>18}{'spread':>9}{'median':>9}{'mean':>7}")
    for name, codec in SECOND:
        print_second(name, partial(stored_by, codec, options.blocks), **sizes)
    try:
        name = f"TurboAdam {version('turboadam')}, 4 bits"
        print_second(name, partial(stored_by_turboadam, 4, options.blocks), **sizes)
    except PackageNotFoundError:
        print("TurboAdam 0.2.0                 skipped: it is not installed")
    steps = min(options.steps, 300)
    print(f"\nfirst moment after {steps} steps of beta1 = {BETA1}: relative error of m / sqrt(v)")
    print(f"{'codec':<32}{'bits':>8}" + "".join(f"{f'sigma {s}':>12}" for s in SIGMAS))
    for name, codec in FIRST:
        fields = codec.layout((1024, 1024)).values()
        bits = sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in fields) / 2**17
        errors = [
            first_error(stored_by(codec, options.blocks), sigma, steps=steps, blocks=options.blocks)
            for sigma in SIGMAS
        ]
        print(f"{name:<32}{bits:>8.3f}" + "".join(f"{error:>12.3f}" for error in errors))
    print("\nTurboAdam's state of GPT-2 124M, bits per parameter")
    for setting in (*SETTINGS, *({"codec": name} for name in PRESETS)):
        written = ", ".join(f"{key}={value!r}" for key, value in setting.items())
        print(f"{f'TurboAdam({written})':<60}{gpt2_bits(setting):>6.2f}")


if __name__ == "__main__":
    main()
