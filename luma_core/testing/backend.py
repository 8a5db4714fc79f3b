"""What every backend must do, as tests: a new backend passes them by a small subclass.

Needs pytest. A subclass names the backend; where it rounds operations that PyTorch fuses, it gives
rules that do not::

    class TestMine(BackendConformance):
        backend = MyBackend()

        def eager(self, rule, item):
            return MyRuleWithoutFusedOperations()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from luma_core import catalog
from luma_core.backends.base import Backend
from luma_core.backends.registry import check_codecs_of_backend
from luma_core.codecs import Codec, Partition, SegmentMean
from luma_core.codecs.registry import codec_type
from luma_core.errors import BackendUnavailableError
from luma_core.rules import ParameterStep, Rule
from luma_core.testing.steps import assert_same_bits, clone_step, make_step
from luma_core.testing.values import (
    SHAPES,
    magnitudes,
    noise,
    poisoned_memory,
    positive_numbers,
)

STEPPED = ((5, 300), (129,), (7, 31))
DTYPES = (torch.float32, torch.bfloat16)
GROUP = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "maximize": False,
    "bias_correction": True,
    "always_adapt": False,
    "trust_clip": False,
    "decoupled_weight_decay": False,
    "momentum_decay": None,
    "nus": (0.7, 0.6),
}


def all_rules() -> list[Rule]:
    """Return the rules of the catalog."""
    homes = dict.fromkeys(entry.rule for entry in catalog.ALGORITHMS)
    return [catalog.import_home(home)() for home in homes]


def all_codecs(kind: str, shape: tuple[int, ...]) -> list[Codec]:
    """Return the catalog's codecs of moments of a kind, for a tensor of ``shape``."""
    names = [entry.name for entry in catalog.CODECS if entry.moments in (kind, "both")]
    partition = Partition.rows(shape) if len(shape) > 1 else Partition.whole(shape)
    return [
        SegmentMean(partition=partition) if name == SegmentMean.name else codec_type(name)()
        for name in names
    ]


def all_combinations(rule: Rule, shape: tuple[int, ...]) -> list[dict[str, Codec]]:
    """Return every codecs of a rule's moments."""
    choices = product(*(all_codecs(spec.kind, shape) for spec in rule.moments))
    return [dict(zip(rule.moment_names, codecs, strict=True)) for codecs in choices]


class BackendConformance:
    """The promises of a `Backend` on the CPU: bit for bit what eager PyTorch does.

    Attributes:
        backend: the backend.
        group: the options of a group for every rule.
    """

    backend: ClassVar[Backend]
    group: ClassVar[Mapping[str, Any]] = GROUP

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test for each rule, and for each codec."""
        if "rule" in metafunc.fixturenames:
            rules = all_rules()
            metafunc.parametrize("rule", rules, ids=[type(rule).__name__ for rule in rules])
        if "codec" in metafunc.fixturenames:
            codecs = {c.name: c for kind in ("signed", "square") for c in all_codecs(kind, (4, 9))}
            metafunc.parametrize("codec", codecs.values(), ids=codecs)

    @pytest.fixture(autouse=True)
    def _poisoned(self) -> Iterator[None]:
        with poisoned_memory():
            yield

    def eager(self, rule: Rule, item: ParameterStep) -> Rule:
        """Return the rule whose eager step of ``item`` has the backend's bits."""
        return rule

    def claimed(self, rule: Rule, shape: tuple[int, ...]) -> list[dict[str, Codec]]:
        """Return the codecs with which it says that it has kernels of the rule."""
        combinations = all_combinations(rule, shape)
        return [one for one in combinations if not self.backend.why_no_kernel(rule, one)]

    def assert_steps_like_eager(self, rule: Rule, item: ParameterStep) -> None:
        """Take the step by the backend and in PyTorch, and compare all bits."""
        expected = clone_step(item)
        bad = self.backend.step(rule, item)
        assert bad is not None
        assert (bad.dtype, bad.shape) == (torch.int64, ())
        names = [stored.codec.name for stored in item.moments.values()]
        assert int(bad) == int(self.eager(rule, item).step_parameter(expected)), names
        assert_same_bits(item, expected, names)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_kernel_steps_as_eager_does(self, rule: Rule, dtype: torch.dtype) -> None:
        for shape in STEPPED:
            for codecs in self.claimed(rule, shape):
                item = make_step(rule, codecs, self.group, shape, dtype=dtype)
                self.assert_steps_like_eager(rule, item)

    @pytest.mark.parametrize("skip", [False, True])
    def test_every_kernel_counts_and_skips_as_eager_does(self, rule: Rule, skip: bool) -> None:
        for codecs in self.claimed(rule, (5, 300)):
            item = make_step(rule, codecs, self.group, (5, 300), skip_nonfinite=skip)
            item.grad[3, 7], item.grad[1, 299] = torch.nan, torch.inf
            self.assert_steps_like_eager(rule, item)

    def test_every_kernel_takes_options_as_eager_does(self, rule: Rule) -> None:
        group = {**self.group, "maximize": True, "lr": torch.tensor(0.003, device="cpu")}
        for codecs in self.claimed(rule, (5, 300)):
            item = make_step(rule, codecs, group, (5, 300))
            factor = torch.tensor(0.3, device="cpu")
            part = all(codec.tiled for codec in codecs.values())
            item = replace(item, grad_factor=factor, first_index=77 if part else 0)
            self.assert_steps_like_eager(rule, item)

    def test_what_it_lacks_is_named_and_refused_where_it_is_asked_for(self, rule: Rule) -> None:
        for codecs in all_combinations(rule, (5, 300)):
            reason = self.backend.why_no_kernel(rule, codecs)
            if reason:
                assert type(rule).__name__ in reason or any(
                    codec.name in reason for codec in codecs.values()
                )
                with pytest.raises(BackendUnavailableError, match=f"cannot step 'w': {reason}"):
                    check_codecs_of_backend(self.backend.name, rule, "w", codecs)
            else:
                check_codecs_of_backend(self.backend.name, rule, "w", codecs)

    def test_moments_are_coded_as_eager_codes_them(self, codec: Codec) -> None:
        if not codec.tiled:
            return
        samples = [magnitudes(shape, spread=4.0) for shape in (*SHAPES, (3, 9000))]
        samples += [torch.zeros(4, 96, device="cpu"), -torch.zeros(4, 96, device="cpu")]
        samples = [x if codec.signed else x.square() for x in samples]
        for x in (*samples, positive_numbers()):
            for draws in (None, noise(tuple(x.shape))):
                self.assert_codes_like_eager(codec, x, draws)

    def assert_codes_like_eager(self, codec: Codec, x: Tensor, draws: Tensor | None) -> None:
        """Code and decode by the backend, where it can, and in PyTorch, and compare all bits."""
        shape = tuple(x.shape)
        expected = codec.encode_tensor(x, draws)
        found = self.backend.encode(codec, x, draws)
        if found is not None:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        decoded = self.backend.decode(codec, expected, shape)
        if decoded is not None:
            again = codec.decode_tensor(expected, shape)
            assert torch.equal(decoded.nan_to_num(7.0), again.nan_to_num(7.0))
