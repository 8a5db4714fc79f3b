"""States made by hand: any codec, any shape, any values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from luma_core.codecs import Codec
from luma_core.state import GroupOptions, ParameterState, field_key

OPTIONS: GroupOptions = {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-8}


@dataclass
class ListSource:
    states: Sequence[ParameterState]
    groups: Sequence[GroupOptions] = (OPTIONS,)
    algorithm: str = "luma"

    def parameter_names(self) -> list[str]:
        return [state.name for state in self.states]

    def parameter_state(self, name: str) -> ParameterState:
        return next(state for state in self.states if state.name == name)

    def group_options(self) -> list[GroupOptions]:
        return list(self.groups)


def make_state(
    name: str, m: Tensor, v: Tensor, codec_m: Codec, codec_v: Codec, **more: Any
) -> ParameterState:
    stored = {"exp_avg": (codec_m, m), "exp_avg_sq": (codec_v, v)}
    return ParameterState(
        name=name,
        shape=tuple(m.shape),
        dtype="float32",
        group=more.pop("group", 0),
        step=more.pop("step", 3),
        codecs={moment: codec for moment, (codec, _) in stored.items()},
        fields={
            field_key(moment, field): tensor
            for moment, (codec, x) in stored.items()
            for field, tensor in codec.encode_tensor(x).items()
        },
        **more,
    )


def random_moments(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Moments that span many decades, with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(3 * torch.randn(shape, generator=generator)) * 1e-3
    sign = torch.randint(-1, 2, shape, generator=generator)
    return size * sign, (size * torch.rand(shape, generator=generator)).square()


@pytest.fixture
def source() -> Callable[..., ListSource]:
    return ListSource


@pytest.fixture
def state() -> Callable[..., ParameterState]:
    return make_state


@pytest.fixture
def moments() -> Callable[..., tuple[Tensor, Tensor]]:
    return random_moments


@pytest.fixture
def histogram() -> Callable[[np.ndarray], tuple[list[int], int]]:
    """numpy's own histogram of log10 magnitudes over the documented edges, and the zeros."""
    from luma_core.stats import HISTOGRAM_EDGES

    def count(x: np.ndarray) -> tuple[list[int], int]:
        size = np.abs(x[np.isfinite(x)]).astype(np.float64)
        counts, _ = np.histogram(np.log10(size[size > 0]), bins=np.array(HISTOGRAM_EDGES))
        return counts.tolist(), int((size == 0).sum())

    return count
