"""What every update rule must do, as tests: a new rule passes them by a small subclass.

Needs pytest. A subclass names the rule and the options of a group, and says in float64 what a step
does::

    class TestMine(RuleConformance):
        rule = MyRule()
        group = {"lr": 0.01, "beta": 0.9, "weight_decay": 0.1, "maximize": False}

        def reference(self, param, grad, moments, step):
            m = 0.9 * moments["exp_avg"] + 0.1 * grad
            return param * (1 - 0.01 * 0.1) - 0.01 * m, {"exp_avg": m}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

from luma_core import rounding
from luma_core.codecs import BF16, FP32, Codec, LogV, Luma16M, Luma16V, TableM
from luma_core.rules import MomentKind, ParameterStep, Rule
from luma_core.testing.steps import (
    assert_same_bits,
    clone_step,
    decoded,
    make_step,
    rows_of,
    step_together,
    written,
)
from luma_core.testing.values import poisoned_memory

SHAPE = (6, 300)
STORAGE: dict[str, tuple[type[Codec], type[Codec]]] = {
    "fp32": (FP32, FP32),
    "bf16": (BF16, BF16),
    "luma16": (Luma16M, Luma16V),
    "few bits": (TableM, LogV),
}
"""The codecs of moments of both signs and of squares."""


class RuleConformance:
    """The promises of a `Rule`.

    Attributes:
        rule: the rule.
        group: the options of a group that it needs, with ``lr`` and ``maximize``.
        skips_with_scale: whether all elements that share a scale are skipped where one is not
            finite; rules that skip other elements say no.
        parameter_error: how far a float32 step's parameter may be from ``reference``: relative and
            absolute.
    """

    rule: ClassVar[Rule]
    group: ClassVar[Mapping[str, Any]]
    skips_with_scale: ClassVar[bool] = True
    parameter_error: ClassVar[tuple[float, float]] = (1e-5, 1e-6)

    def reference(
        self, param: Tensor, grad: Tensor, moments: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the new parameter and moments of a step under ``group``, all float64."""
        raise NotImplementedError

    def codecs(self, storage: str, block_size: int | None = 128) -> dict[str, Codec]:
        """Return the codec of each moment."""
        signed, square = STORAGE[storage]
        kinds = {"signed": signed, "square": square}
        return {spec.name: kinds[spec.kind](block_size=block_size) for spec in self.rule.moments}

    def item(
        self, storage: str, block_size: int | None = 128, *, over: Any = None, **options: Any
    ) -> ParameterStep:
        """Return a step; ``over`` are options of the group."""
        group = {**self.group, **(over or {})}
        return make_step(self.rule, self.codecs(storage, block_size), group, SHAPE, **options)

    @pytest.fixture(autouse=True)
    def _poisoned(self) -> Iterator[None]:
        with poisoned_memory():
            yield

    @pytest.fixture(params=[*((name, 128) for name in STORAGE), ("fp32", None), ("luma16", None)])
    def stored(self, request: pytest.FixtureRequest) -> tuple[str, int | None]:
        """How moments are stored: codecs and block size."""
        found: tuple[str, int | None] = request.param
        return found

    def test_moments_have_names_and_noise_of_their_own(self) -> None:
        specs = self.rule.moments
        assert len({spec.name for spec in specs}) == len({spec.stream for spec in specs})
        assert self.rule.moment_names == tuple(spec.name for spec in specs)
        assert all(spec.kind in get_args(MomentKind) for spec in specs)

    @pytest.mark.parametrize("block_size", [128, None])
    @pytest.mark.parametrize("step", [1, 3])
    def test_a_step_is_what_the_formula_says(self, step: int, block_size: int | None) -> None:
        item = self.item("fp32", block_size, step=step)
        old = {name: moment.double() for name, moment in decoded(item).items()}
        grad = item.grad.clone()
        param, moments = self.reference(item.param.double(), grad.double(), old, step)
        assert int(self.rule.step_parameter(item)) == 0
        assert torch.equal(item.grad, grad)
        rtol, atol = self.parameter_error
        torch.testing.assert_close(item.param, param.float(), rtol=rtol, atol=atol)
        for name, moment in decoded(item).items():
            torch.testing.assert_close(moment, moments[name].float(), rtol=1e-4, atol=1e-12)

    def test_ascending_is_descending_the_negative(self, stored: tuple[str, int | None]) -> None:
        up = self.item(*stored, over={"maximize": True})
        down = self.item(*stored)
        down = replace(down, grad=-down.grad)
        for item in (up, down):
            self.rule.step_parameter(item)
        assert_same_bits(up, down)

    def test_a_tensor_is_a_learning_rate(self) -> None:
        plain = self.item("fp32", over={"lr": 2.0**-6})
        given = self.item("fp32", over={"lr": torch.tensor(2.0**-6, device="cpu")})
        for item in (plain, given):
            self.rule.step_parameter(item)
        torch.testing.assert_close(given.param, plain.param, rtol=1e-6, atol=1e-7)

    def test_a_factor_scales_the_gradient(self) -> None:
        item = self.item("luma16")
        scaled = replace(clone_step(item), grad_factor=torch.tensor(0.3, device="cpu"))
        item = replace(item, grad=item.grad * torch.tensor(0.3, device="cpu"))
        self.rule.step_parameter(item)
        self.rule.step_parameter(scaled)
        assert_same_bits(scaled, item)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_parts_of_a_parameter_step_as_the_whole(
        self, stored: tuple[str, int | None], dtype: torch.dtype
    ) -> None:
        whole = self.item(*stored, dtype=dtype)
        parts = [rows_of(whole, rows) for rows in (slice(0, 2), slice(2, 6))]
        self.rule.step_parameter(whole)
        step_together(self.rule, parts)
        for part, rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
            assert_same_bits(part, rows_of(whole, rows))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite_is_skipped_or_passed_on(
        self, stored: tuple[str, int | None], value: float
    ) -> None:
        skipped = self.item(*stored)
        skipped.grad[2, 130] = value
        passed = replace(clone_step(skipped), skip_nonfinite=False)
        before = clone_step(skipped)
        assert int(self.rule.step_parameter(skipped)) == 1
        assert int(self.rule.step_parameter(passed)) == 1
        assert torch.equal(skipped.param[2, 128:256], before.param[2, 128:256])
        assert all(bool(torch.isfinite(moment).all()) for moment in decoded(skipped).values())
        assert torch.isfinite(skipped.param).all()
        assert any(not moment[2, 130].isfinite() for moment in decoded(passed).values())
        if stored[1] is None and self.skips_with_scale:
            assert_same_bits(skipped, before)
        elif stored[1] is not None:
            assert not torch.equal(skipped.param[0], before.param[0])

    def test_each_moment_is_rounded_by_its_own_stream(self) -> None:
        coded = self.item("bf16")
        exact = clone_step(coded)
        for spec in self.rule.moments:
            moment = exact.moments[spec.name]
            if moment.codec.tiled:
                plain = FP32().encode_tensor(moment.codec.decode_tensor(moment.fields, SHAPE))
                moments = {**exact.moments, spec.name: replace(moment, codec=FP32(), fields=plain)}
                exact = replace(exact, moments=moments)
        self.rule.step_parameter(coded)
        self.rule.step_parameter(exact)
        for spec in self.rule.moments:
            moment = coded.moments[spec.name]
            if not moment.codec.rounds:
                continue
            bits = coded.random_bits(0, coded.grad.numel(), rounding.word_of(spec.stream))
            draws = rounding.draw_stream(bits.view(SHAPE), spec.stream)
            expected = moment.codec.encode_tensor(decoded(exact)[spec.name], draws)
            assert all(torch.equal(moment.fields[key], expected[key]) for key in expected)

    def test_equal_steps_have_equal_bits_and_steps_differ_in_noise(self) -> None:
        first, again = (self.item("bf16", dtype=torch.bfloat16) for _ in range(2))
        other = replace(clone_step(first), keys=rounding.step_keys(-5, 4))
        for item in (first, again, other):
            self.rule.step_parameter(item)
        assert_same_bits(again, first)
        assert any(not torch.equal(x, written(other)[name]) for name, x in written(first).items())
