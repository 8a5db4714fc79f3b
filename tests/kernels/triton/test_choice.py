"""A rule without kernels is refused where they were asked for by name, and only there."""

import pytest

from luma_core.errors import BackendUnavailableError
from luma_core.optim.step import gpu
from luma_core.rules import AdamWRule

pytest.importorskip("triton")

from luma_kernels.triton.runtime.launcher import FusedStep


class OtherRule(AdamWRule):
    """A rule that kernels do not know."""


def test_a_rule_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_no_triton", lambda: "")
    assert gpu.fused_step_class("triton", AdamWRule()) is FusedStep
    assert gpu.fused_step_class("auto", OtherRule()) is None
    with pytest.raises(BackendUnavailableError, match="no Triton kernel of the rule OtherRule"):
        gpu.fused_step_class("triton", OtherRule())


def test_a_machine_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_no_triton", lambda: "there is no CUDA device")
    assert gpu.fused_step_class("auto", AdamWRule()) is None
    with pytest.raises(BackendUnavailableError, match="there is no CUDA device"):
        gpu.fused_step_class("triton", AdamWRule())
