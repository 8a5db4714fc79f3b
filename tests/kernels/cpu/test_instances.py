"""Kernels are one table: the query and the steps agree, and what is not in it is an error."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, LogV, Luma16M, RootV, TableM
from luma_core.errors import BackendUnavailableError
from luma_core.rules import AdamWRule, LAMBRule
from luma_kernels import cpu
from luma_kernels.cpu.coding import describe_layout, describe_moment
from luma_kernels.cpu.library import address, native_library
from luma_kernels.cpu.step import describe_step
from luma_kernels.cpu.structs import LOG_ROOT, NONE, ROOT, TABLE, Coding

from .conftest import assert_like_eager, clone, luma_codecs, make_step, packed_codecs, tensors
from .test_lamb_step import lamb_step

pytestmark = pytest.mark.usefixtures("exact_roots")

FIRSTS = [FP32(), BF16(), Luma16M(), FP8E4M3(), TableM(bits=3)]
SECONDS = [FP32(), BF16(), RootV(bits=5, floor=0.1), LogV(bits=4)]
PAIRS = list(product(FIRSTS, SECONDS))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pair_of_codecs_is_stepped_as_eager_steps_it(
    first: Codec, second: Codec, dtype: torch.dtype
) -> None:
    codecs = {"exp_avg": first, "exp_avg_sq": second}
    assert cpu.unsupported_codecs(AdamWRule(), codecs) == ""
    item = make_step((5, 300), codecs, dtype=dtype)
    item.grad[3, 7] = float("inf")
    assert assert_like_eager(item) == 1
    if not cpu.unsupported_codecs(LAMBRule(), codecs):
        assert_like_eager(lamb_step((5, 300), codecs, dtype=dtype))


def test_lamb_steps_codes_of_a_few_bits() -> None:
    for first, second in product((FP32(), TableM(bits=3)), SECONDS):
        codecs = {"exp_avg": first, "exp_avg_sq": second}
        if not isinstance(second, BF16):
            assert cpu.unsupported_codecs(LAMBRule(), codecs) == ""


@pytest.mark.parametrize(
    ("member", "value"),
    [("kind", 5), ("kind", LOG_ROOT), ("kind", -1), ("kind", 77), ("bits", 7)],
)
def test_a_kind_without_a_kernel_is_an_error_and_changes_nothing(member: str, value: int) -> None:
    item = make_step((4, 128), packed_codecs(3, 2))
    before = clone(item)
    first = describe_step(item, item.param, item.grad).step
    second = describe_step(item, item.param, item.grad).step
    setattr(second.first, member, value)
    with pytest.raises(BackendUnavailableError, match=r"no kernel of rule 0 with moments of kinds"):
        native_library().steps([first, second], 1)
    for name, value_before in tensors(before).items():
        assert torch.equal(tensors(item)[name], value_before), name


@pytest.mark.parametrize("rule", [-1, 1, 2, 99])
def test_a_rule_that_is_not_known_is_an_error(rule: int) -> None:
    item = make_step((4, 128), luma_codecs(128))
    step = describe_step(item, item.param, item.grad).step
    step.rule, step.second.kind = rule, NONE if rule == 2 else ROOT
    step.first.kind = TABLE if rule == 1 else LOG_ROOT
    with pytest.raises(BackendUnavailableError, match=f"no kernel of rule {rule} "):
        native_library().steps([step], 1)


@pytest.mark.parametrize("kind", [0, 6, NONE, 42, -3])
def test_a_moment_that_is_not_coded_is_an_error(kind: int) -> None:
    codec, x = Luma16M(), torch.ones(4, 128)
    fields = codec.encode_tensor(x)
    stored = describe_moment(codec, fields)
    stored.kind = kind
    coding = Coding(address(x), None, stored, describe_layout(codec, (4, 128)), 0)
    for run in (native_library().encode, native_library().decode):
        with pytest.raises(BackendUnavailableError, match=f"moment of kind {kind} "):
            run(coding, 1)
    assert torch.equal(x, torch.ones(4, 128))
