"""No step is larger than Adam's own, however the magnitudes of gradients spread.

Adam moves an element by ``(1 - beta1) / sqrt(1 - beta2)`` learning rates after one gradient much
larger than all before, 3.16 with the default betas, and by less otherwise.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luma_core import LAMB, LUMA, AdamMini, AdamW, TurboAdam

SHAPE = (4, 256)
STEPS = 45
Gradients = Callable[[Tensor, int], Tensor]


def spike(size: float) -> Gradients:
    """One element of one step."""

    def change(grad: Tensor, step: int) -> Tensor:
        if step == 20:
            grad[0, 0] = size
        return grad

    return change


def spikes(grad: Tensor, step: int) -> Tensor:
    """Smaller and smaller ones, in elements of one block and of another row."""
    for at, element, size in ((8, 3, 1e12), (9, 5, 1e9), (12, 7, 1e6), (13, 9, 1e2), (30, 11, 1.0)):
        if step == at:
            grad[0, element] = grad[2, element] = size
    return grad


def column(grad: Tensor, step: int) -> Tensor:
    """A raw time in seconds beside features of a thousandth."""
    grad[:, 1] = 1.7e9
    return grad


def spread(size: float) -> Gradients:
    """Elements that are always apart by as much as ``size``."""
    exponents = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    return lambda grad, step: grad * size**exponents


GRADIENTS: dict[str, Gradients] = {
    "spike of 1e3": spike(1e3),
    "spike of 1e10": spike(1e10),
    "spikes": spikes,
    "column": column,
    **{f"spread of {size:.0e}": spread(size) for size in (1e6, 1e9, 1e12, 1e15)},
}


def moves(
    kind: Callable[..., Any], change: Gradients, seed: int = 0, **options: Any
) -> Iterator[Tensor]:
    """Yield what each step changes, in units of the learning rate."""
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.zeros(SHAPE))
    options = {"weight_decay": 0.0, "seed": 0, "min_compress_elements": 0, **options}
    optimizer = kind([("w", param)], lr=1e-3, **options)
    for step in range(STEPS):
        param.grad = change(torch.randn(SHAPE, generator=generator) * 1e-3, step)
        before = param.detach().clone()
        optimizer.step()
        yield (param.detach() - before) / 1e-3


def largest_move(*args: Any, **options: Any) -> float:
    """Return the largest change of any element in any step."""
    return max(float(move.abs().max()) for move in moves(*args, **options))


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("block_size", [128, None])
@pytest.mark.parametrize("backend", ["pytorch", "native"])
def test_luma_never_moves_further_than_adam(
    backend: str, block_size: int | None, gradients: str
) -> None:
    change = GRADIENTS[gradients]
    assert largest_move(LUMA, change, backend=backend, block_size=block_size) <= 3.2


@pytest.mark.parametrize("gradients", ["spike of 1e10", "spikes", "column", "spread of 1e+12"])
@pytest.mark.parametrize("backend", ["pytorch", "native"])
def test_lamb_never_moves_further_before_its_ratio(backend: str, gradients: str) -> None:
    """Without weight decay the ratio is 1."""
    assert largest_move(LAMB, GRADIENTS[gradients], backend=backend) <= 3.2


PACKED: dict[str, dict[str, Any]] = {
    "5bit": {"preset": "5bit"},
    "8bit": {"preset": "8bit"},
    "costate": {"m_codec": "costate"},
    "2 and 8 bits": {"m_bits": 2, "v_bits": 8, "v_floor": None},
    "8 and 2 bits": {"m_bits": 8, "v_bits": 2, "v_floor": None},
    "low floor": {"m_bits": 4, "v_bits": 4, "v_floor": 2.0**-10},
    "m alone": {"compress_v": False},
    "v alone": {"compress_m": False, "v_floor": None, "v_bits": 5},
}


@pytest.mark.parametrize(
    "gradients", ["spike of 1e3", "spike of 1e10", "spikes", "spread of 1e+09"]
)
@pytest.mark.parametrize("storage", PACKED)
def test_turbo_adam_never_moves_further_than_twice_that(storage: str, gradients: str) -> None:
    options = {"min_m_compress_elements": 0, **PACKED[storage]}
    assert largest_move(TurboAdam, GRADIENTS[gradients], **options) <= 6.4


def test_the_bound_follows_the_betas() -> None:
    options = {"betas": (0.9, 0.99), "preset": "8bit", "min_m_compress_elements": 0}
    assert largest_move(TurboAdam, spread(1e6), **options) <= 2.001


TWINS: dict[tuple[str, str], float] = {}
"""Largest moves of Adam-mini with float32 moments, by cut and gradients."""

FIRST = {
    "bf16": {"m_dtype": "bf16"},
    "fp8": {"m_dtype": "fp8"},
    "luma16": {"codec": {"exp_avg": "luma16_m"}},
    "luma16, 32": {"codec": {"exp_avg": {"name": "luma16_m", "block_size": 32}}},
    "luma16 by tensor": {"codec": {"exp_avg": {"name": "luma16_m", "block_size": None}}},
}


CODED = [(first, "pytorch") for first in FIRST]
CODED += [(first, "native") for first in FIRST if "by tensor" not in first]
HARD = ("spike of 1e10", "spikes", "column", "spread of 1e+12")


@pytest.mark.parametrize(("first", "backend"), CODED)
@pytest.mark.parametrize("cut", ["row", "column", "element"])
@pytest.mark.parametrize("gradients", HARD)
def test_adam_mini_moves_no_further_than_its_twin_in_float32(
    gradients: str, cut: str, first: str, backend: str
) -> None:
    change, options = GRADIENTS[gradients], FIRST[first]
    shared: dict[str, Any] = {"overrides": {"w": cut}}
    if (cut, gradients) not in TWINS:
        TWINS[cut, gradients] = largest_move(AdamMini, change, m_dtype="fp32", **shared)
    # E4M3 rounds the largest values, too, by as much as an eighth.
    slack = 1.15 if first == "fp8" else 1.01
    move = largest_move(AdamMini, change, backend=backend, **shared, **options)
    assert move <= TWINS[cut, gradients] * slack


@pytest.mark.parametrize("backend", ["pytorch", "native"])
@pytest.mark.parametrize("gradients", HARD)
@pytest.mark.parametrize("first", ["fp8_e4m3", "luma16_m"])
@pytest.mark.parametrize("second", ["fp32", "bf16"])
def test_adamw_with_a_coded_first_moment_alone_never_moves_further_than_adam(
    first: str, second: str, gradients: str, backend: str
) -> None:
    codec = {"exp_avg": first, "exp_avg_sq": second}
    assert largest_move(AdamW, GRADIENTS[gradients], codec=codec, backend=backend) <= 3.2


def test_luma_still_follows_adamw_beside_elements_a_million_times_larger() -> None:
    def adamw(params: Any, lr: float, seed: int, min_compress_elements: int, **options: Any) -> Any:
        return torch.optim.AdamW([param for _, param in params], lr=lr, **options)

    for ours, exact in zip(moves(LUMA, spread(1e6)), moves(adamw, spread(1e6)), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0.02, atol=0.02)
