"""Fused steps that need whole parameters leave, on their parts, the bits of whole parameters.

Each part is stepped by a `FusedStep` of its own; the collective between its launches is played by
rounds, each of which learns one more of the sums that processes would exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from luma_core import LAMB, AdamMini
from luma_core.codecs import Partition, SegmentMean
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.step.clipping import gradient_square_digits
from luma_core.rules import collective
from luma_core.rules.norms import total

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*FP_FUSION.*")

from luma_kernels.triton.fused.launcher import FusedStep  # noqa: E402

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
Shape = tuple[int, ...]


class Part(NamedTuple):
    """What a fused step asks of a `luma_core.sharding.Part`."""

    shape: Shape
    local_shape: Shape
    first_index: int
    groups: tuple[str, ...] = ("all",)


class NotYet(Exception):
    """A process has to wait for others."""


class Exchange:
    """Sums over processes that run one after the other, again and again until all is known."""

    def __init__(self) -> None:
        self.known: list[Tensor] = []
        self._added: list[Tensor] = []
        self._calls = 0

    def all_reduce(self, values: Tensor, kind: str, group: str) -> None:
        assert (kind, group) == ("sum", "all")
        self._calls += 1
        if self._calls <= len(self.known):
            values.copy_(self.known[self._calls - 1])
            return
        self._added.append(values.clone())
        raise NotYet

    def rounds(self, processes: list[Callable[[], None]]) -> None:
        while True:
            self._added = []
            for process in processes:
                self._calls = 0
                try:
                    process()
                except NotYet:
                    continue
            if not self._added:
                return
            assert len(self._added) == len(processes)
            self.known.append(torch.stack(self._added).sum(dim=0))


class Side:
    """Parameters and state that one process steps: the whole of them, or rows."""

    def __init__(
        self, optimizer: CompressedOptimizer, rows: dict[str, tuple[int, int]] | None
    ) -> None:
        self.optimizer, self.rows = optimizer, rows
        self.params, self.states, self.parts = [], [], []
        for name, param, group in optimizer.parameters_by_name():
            codecs = optimizer.codecs(param, group)
            first, last = (0, len(param)) if rows is None else rows[name]
            part = None
            if rows is not None:
                inner = math.prod(param.shape[1:])
                part = Part(tuple(param.shape), (last - first, *param.shape[1:]), first * inner)
            state = {}
            for key, value in optimizer.state[param].items():
                codec = codecs.get(key.split(".")[0])
                whole = value.dim() == 0 or isinstance(codec, SegmentMean)
                state[key] = value.clone() if whole else value[first:last].clone()
            self.params.append(nn.Parameter(param.detach()[first:last].clone()))
            self.states.append(state)
            self.parts.append(part)

    def step(self, grads: list[Tensor]) -> None:
        optimizer = self.optimizer
        items = []
        for (name, whole, group), param, state, part, grad in zip(
            optimizer.parameters_by_name(), self.params, self.states, self.parts, grads, strict=True
        ):
            first, last = (0, len(whole)) if self.rows is None else self.rows[name]
            param.grad = grad[first:last].clone()
            start = 0 if part is None else part.first_index
            items.append((param, state, optimizer.codecs(whole, group), 0, start, part))
        fused = FusedStep(DEVICE, optimizer.rule)
        assert all(fused.build(items, optimizer.param_groups))
        bounded = optimizer.param_groups[0].get("max_grad_norm") is not None
        norm = fused.square_sum().sqrt() if bounded else None
        fused.launch(optimizer.param_groups, grad_norm=norm)

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = [param.detach() for param in self.params]
        return found + [value for state in self.states for value in state.values()]

    def load(self, values: list[Tensor]) -> None:
        for mine, value in zip(self.tensors(), values, strict=True):
            mine.copy_(value)


def compare(
    optimizer: CompressedOptimizer,
    cuts: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[list[Tensor]], None] = lambda grads: None,
    *,
    steps: int = 2,
) -> Side:
    """Step whole parameters and parts between the rows ``cuts``, and compare all they wrote."""
    generator = torch.Generator().manual_seed(4)
    params = [param for _, param, _ in optimizer.parameters_by_name()]
    count = len(next(iter(cuts.values()))) - 1
    rows = [{key: (at[i], at[i + 1]) for key, at in cuts.items()} for i in range(count)]
    whole, sides = Side(optimizer, None), [Side(optimizer, part) for part in rows]
    for _ in range(steps):
        grads = [torch.randn(p.shape, generator=generator).to(DEVICE, p.dtype) for p in params]
        spoil(grads)
        whole.step(grads)
        exchange = Exchange()
        monkeypatch.setattr(collective, "all_reduce", exchange.all_reduce)
        before = [[value.clone() for value in side.tensors()] for side in sides]

        def process(side: Side, values: list[Tensor], grads: list[Tensor] = grads) -> None:
            side.load(values)
            side.step(grads)

        exchange.rounds(
            [
                lambda side=side, values=values: process(side, values)
                for side, values in zip(sides, before, strict=True)
            ]
        )
        assert exchange.known
    for side in sides:
        assert side.rows is not None
        for index, (name, (first, last)) in enumerate(side.rows.items()):
            assert torch.equal(side.params[index], whole.params[index][first:last]), name
            for key, value in side.states[index].items():
                expected = whole.states[index][key]
                if value.shape != expected.shape:
                    expected = expected[first:last]
                if key != "nonfinite":
                    assert torch.equal(value, expected), (name, key)
    return whole


@pytest.mark.parametrize(
    ("dtype", "bound", "steps"),
    [
        (torch.float32, 0.5, 1),
        pytest.param(torch.float32, None, 2, marks=pytest.mark.heavy),
        pytest.param(torch.bfloat16, 0.5, 2, marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_lamb(
    dtype: torch.dtype, bound: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, Shape] = {"even": (6, 256), "ragged": (4, 300), "bias": (300,)}
    params = {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype))
        for name, shape in shapes.items()
    }
    options: dict[str, Any] = {"max_grad_norm": bound, "min_compress_elements": 1000}
    optimizer = LAMB(params.items(), lr=0.1, seed=5, backend="pytorch", **options)
    optimizer.init_state()
    cuts = {"even": [0, 2, 6], "ragged": [0, 1, 4], "bias": [0, 77, 300]}
    compare(optimizer, cuts, monkeypatch, steps=steps)


def test_parts_of_squares_add_up_to_the_eager_sums_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.exp2(torch.randint(-80, 64, (2000,), generator=generator).float())
    values = torch.randn(2000, generator=generator) * sizes
    values[:3] = torch.tensor([math.inf, 1e30, 0.0])
    params = [nn.Parameter(torch.zeros(n, device=DEVICE)) for n in (300, 1700)]
    for param, grad in zip(params, values.split([300, 1700]), strict=True):
        param.grad = grad.to(DEVICE)
    optimizer = LAMB(params, seed=5, backend="pytorch")
    optimizer.init_state()
    fused = FusedStep(DEVICE, optimizer.rule)
    (group,) = optimizer.param_groups
    items = [(p, optimizer.state[p], optimizer.codecs(p, group), 0) for p in params]
    assert all(fused.build(items, [group]))
    assert float(fused.square_sum()) == float(total(gradient_square_digits(values)))


def test_squares_of_rows_are_added_up_in_range_and_out_of_it() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.exp2(torch.randint(-40, 40, (8, 256), generator=generator).float())
    grad = torch.randn(8, 256, generator=generator) * sizes
    grad[3], grad[4] = 1e-25, 0.0
    grad[0, :3] = torch.tensor([math.inf, math.nan, 1e30])
    rows = grad.double().square()
    rows[0, :3] = 0.0

    def square_sum(value: Tensor, block_size: int = 128) -> float:
        param = nn.Parameter(torch.zeros(value.shape, device=DEVICE))
        param.grad = value.to(DEVICE)
        optimizer = LAMB(
            [param], seed=5, backend="pytorch", min_compress_elements=0, block_size=block_size
        )
        optimizer.init_state()
        fused = FusedStep(DEVICE, optimizer.rule)
        (group,) = optimizer.param_groups
        item = (param, optimizer.state[param], optimizer.codecs(param, group), 0)
        assert fused.build([item], [group]) == [True]
        return float(fused.square_sum())

    assert square_sum(grad) == pytest.approx(float(rows.sum()), rel=1e-6)
    assert square_sum(torch.full((8, 256), 1e-15)) == pytest.approx(2048e-30, rel=1e-6)
    # 16 lanes of 16 blocks, whose squares together are beyond the largest float.
    largest = torch.finfo(torch.float32).max
    assert square_sum(torch.full((8, 256), 1.8e19)) == pytest.approx(256 * largest, rel=1e-6)
    widest = square_sum(torch.full((2, 1024), 1.8e19), block_size=1024)
    assert widest == pytest.approx(256 * largest, rel=1e-6)


def test_no_parameters_have_no_squares() -> None:
    optimizer = LAMB([nn.Parameter(torch.zeros(8))], seed=5, backend="pytorch")
    fused = FusedStep(DEVICE, optimizer.rule)
    assert fused.build([], optimizer.param_groups) == []
    assert float(fused.square_sum()) == 0.0


CUTS: dict[str, tuple[Shape, Any, list[int]]] = {
    "rows": ((9, 256), "row", [0, 2, 2, 9]),
    "ragged rows": ((5, 300), "row", [0, 1, 5]),
    "long rows": ((3, 2304), "row", [0, 1, 3]),
    "heads": ((16, 300), Partition.rows((16, 300), size=4), [0, 6, 16]),
    "qkv": ((24, 128), Partition(1, 1, 24, 128, ((2, 4), (2, 4), (8, 1))), [0, 7, 18, 24]),
    "by key head": (
        (32, 128),
        Partition(2, 1, 16, 128, ((2, 4), (1, 4), (4, 1))),
        [0, 10, 32],
    ),
    "experts": ((3, 5, 128), Partition(3, 1, 5, 128, ((5, 1),)), [0, 1, 3]),
    "columns": ((66, 30), "column", [0, 5, 66]),
    "transposed heads": ((5, 160), Partition.columns((5, 160), size=8), [0, 2, 5]),
    "transposed qkv": ((9, 24), Partition(1, 9, 24, 1, ((2, 4), (2, 4), (8, 1))), [0, 4, 9]),
    "transposed experts": ((2, 10, 12), Partition(2, 10, 12, 1, ((12, 1),)), [0, 1, 2]),
}


def mini(cut: str, dtype: torch.dtype = torch.float32, **options: Any) -> AdamMini:
    shape, how, _ = CUTS[cut]
    value = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    optimizer = AdamMini(
        [("p", nn.Parameter(value.to(DEVICE, dtype)))],
        **{"lr": 0.01, "seed": 5, "weight_decay": 0.1, "backend": "pytorch", **options},
        overrides={"p": how},
    )
    optimizer.init_state()
    return optimizer


COMMON = ("rows", "heads", "columns", "transposed experts")


@pytest.mark.parametrize(
    "cut", [cut if cut in COMMON else pytest.param(cut, marks=pytest.mark.heavy) for cut in CUTS]
)
def test_adam_mini(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(mini(cut), {"p": CUTS[cut][2]}, monkeypatch)


@pytest.mark.parametrize(
    "m_dtype",
    ["fp8", *(pytest.param(m_dtype, marks=pytest.mark.heavy) for m_dtype in ("luma16", "fp32"))],
)
def test_first_moments(m_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = mini("rows", torch.bfloat16, m_dtype=m_dtype, min_compress_elements=0)
    compare(optimizer, {"p": CUTS["rows"][2]}, monkeypatch)


@pytest.mark.parametrize("cut", ["heads", "columns"])
def test_a_segment_is_left_out_on_all_parts(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(grads: list[Tensor]) -> None:
        grads[0][5, 2] = math.nan

    optimizer = mini(cut)
    (param,) = optimizer.param_groups[0]["params"]
    after = compare(optimizer, {"p": CUTS[cut][2]}, monkeypatch, spoil, steps=1).params[0]
    segment = (slice(4, 8),) if cut == "heads" else (slice(None), 2)
    assert torch.equal(after[segment], param[segment])
    assert int((after != param).sum()) > 0.9 * (param.numel() - param[segment].numel())


def test_a_sum_beyond_float32_leaves_its_segment_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(grads: list[Tensor]) -> None:
        grads[0][3, :8] = 1e19  # each square is finite, and eight of them are not

    optimizer = mini("rows")
    (param,) = optimizer.param_groups[0]["params"]
    after = compare(optimizer, {"p": CUTS["rows"][2]}, monkeypatch, spoil, steps=1).params[0]
    assert [bool((after[row] == param[row]).all()) for row in range(9)] == [
        r == 3 for r in range(9)
    ]


def test_parts_that_kernels_cannot_take_are_left_to_the_eager_step() -> None:
    optimizer = mini("rows", m_dtype="fp8", min_compress_elements=0)
    (param,), (group,) = optimizer.param_groups[0]["params"], optimizer.param_groups
    for how in ("whole", Partition(1, 1, 3, 768, ((3, 1),))):
        codecs = {
            **optimizer.codecs(param, group),
            "exp_avg_sq": SegmentMean(
                partition=Partition.whole((9, 256)) if how == "whole" else how  # type: ignore[arg-type]
            ),
        }
        part = param.detach()[:4].clone().requires_grad_()
        part.grad = torch.ones_like(part)
        fused = FusedStep(DEVICE, optimizer.rule)
        item = (part, {}, codecs, 0, 0, Part((9, 256), (4, 256), 0))
        assert fused.build([item], [group]) == [False]
