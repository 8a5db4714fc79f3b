"""A rule without kernels is refused where they were asked for by name, and only there."""

import pytest

from luma_core.backends import triton
from luma_core.errors import BackendUnavailableError
from luma_core.rules import AdamWRule

pytest.importorskip("triton")

from luma_kernels.triton.fused.launcher import FusedStep


class OtherRule(AdamWRule):
    """A rule that kernels do not know."""


def test_a_rule_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "why_no_triton", lambda: "")
    assert triton.TRITON.joint_step("triton", AdamWRule()) is FusedStep
    assert triton.TRITON.joint_step("auto", OtherRule()) is None
    with pytest.raises(BackendUnavailableError, match="no Triton kernel of the rule OtherRule"):
        triton.TRITON.joint_step("triton", OtherRule())


def test_a_machine_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "why_no_triton", lambda: "there is no CUDA device")
    assert triton.TRITON.joint_step("auto", AdamWRule()) is None
    with pytest.raises(BackendUnavailableError, match="there is no CUDA device"):
        triton.TRITON.joint_step("triton", AdamWRule())
