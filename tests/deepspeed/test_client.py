"""Our optimizers under DeepSpeed's ZeRO: they train, and go on exactly from what it saved."""

from pathlib import Path

import pytest
import torch

from .runs import needs_deepspeed, run

pytestmark = [needs_deepspeed, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("luma", 2),
        *(
            pytest.param(kind, stage, marks=pytest.mark.heavy)
            for kind, stage in [("luma", 1), ("luma", 3), ("turbo", 1), ("turbo", 2), ("turbo", 3)]
        ),
    ],
)
def test_a_saved_run_goes_on_exactly(kind: str, stage: int, tmp_path: Path) -> None:
    told = run(f"client:{kind}", stage, tmp_path)
    assert told["losses"][-1] < told["losses"][0]
    assert told["losses_again"] == told["losses"][3:]
    for name, weight in told["weights"].items():
        assert torch.equal(told["weights_again"][name], weight), name
    assert any("exp_avg.codes" in fields for fields in told["fields"])


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["lamb", "mini"])
@pytest.mark.parametrize("stage", [1, 3])
def test_optimizers_that_need_shapes_are_refused(kind: str, stage: int, tmp_path: Path) -> None:
    told = run(f"refuse:{kind}", stage, tmp_path)
    assert told["raised"] == "UnsupportedParameterError"
    assert "is a flat one" in told["message"]
