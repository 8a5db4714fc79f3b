"""Tensors that steps need whole: equal ones in one batch, each with its own result."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luma_core.rules.base import Gather, Stages, alone
from luma_core.rules.collective import run_together
from luma_core.rules.whole import apply_whole


@dataclass(frozen=True)
class Doubled:
    """Doubles a tensor and counts; records the shapes of its batches."""

    batches: list[tuple[int, ...]] = field(default_factory=list, compare=False)

    def cost(self, shape: tuple[int, ...]) -> int:
        return 1

    def apply(self, values: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.batches.append(tuple(values.shape))
        return values * 2, None if beside is None else beside + 1


def test_equal_functions_of_equal_shapes_are_one_batch() -> None:
    function = Doubled()
    wanted = [
        Gather(torch.full(shape, i), function) for i, shape in enumerate([(2, 3), (4,), (2, 3)])
    ]
    found = apply_whole(wanted)
    assert [float(one.values.flatten()[0]) for one in found] == [0, 2, 4]
    assert function.batches == [(2, 2, 3), (1, 4)]
    beside = [one._replace(beside=torch.zeros(1)) for one in wanted]
    assert all(one.beside is not None and one.beside.item() == 1 for one in apply_whole(beside))


def test_steps_that_gather_run_together_or_alone() -> None:
    def stages(start: float) -> Stages:
        first = yield Gather(torch.full((2, 3), start), function, torch.zeros(2))
        second = yield Gather(first.values, function, first.beside)
        return torch.stack([second.values.sum(), second.beside.sum()])

    function: Any = Doubled()
    results = run_together([(stages(1.0), None), (stages(2.0), None)])
    assert [result.tolist() for result in results] == [[24.0, 4.0], [48.0, 4.0]]
    assert function.batches == [(2, 2, 3), (2, 2, 3)]
    assert alone(stages(1.0)).tolist() == [24.0, 4.0]
