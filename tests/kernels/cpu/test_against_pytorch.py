"""How far native results are from those of PyTorch as it is, which rounds as its libraries do."""

from __future__ import annotations

import pytest
import torch

from luma_core.rules import AdamWRule
from luma_kernels import cpu

from .conftest import clone, luma_codecs, make_step, packed_codecs


@pytest.mark.parametrize("block_size", [128, 2000, None])
def test_codes_of_a_step_differ_only_by_rounding(block_size: int | None) -> None:
    """PyTorch may fuse a multiplication with an addition: rarely, a code falls beyond an edge.

    Where a new first moment nearly cancels, one such rounding can be several of its tiny steps.
    """
    item = make_step((300, 1000), luma_codecs(block_size), spread=2.0)
    expected = clone(item)
    AdamWRule().step_parameter(expected)
    cpu.step_parameter(item)
    for name, stored in item.moments.items():
        codec, theirs = stored.codec, expected.moments[name].fields
        assert torch.equal(stored.fields["exponent"], theirs["exponent"])
        apart = codec.magnitudes(stored.fields["codes"]) - codec.magnitudes(theirs["codes"])
        assert float((apart != 0).float().mean()) < 1e-3
        assert float((apart.abs() > 1).float().mean()) < 1e-4
    torch.testing.assert_close(item.param, expected.param, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("v_bits", "floor"), [(2, 0.25), (5, None)])
def test_packed_codes_of_a_step_differ_only_by_rounding(v_bits: int, floor: float | None) -> None:
    item = make_step((300, 1000), packed_codecs(3, v_bits, floor=floor), spread=2.0)
    expected = clone(item)
    AdamWRule().step_parameter(expected)
    cpu.step_parameter(item)
    for name, stored in item.moments.items():
        for key, mine in stored.fields.items():
            theirs = expected.moments[name].fields[key]
            assert float((mine != theirs).float().mean()) < 1e-3, (name, key)
    torch.testing.assert_close(item.param, expected.param, rtol=1e-6, atol=1e-6)
