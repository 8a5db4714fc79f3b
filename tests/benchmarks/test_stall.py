"""One huge gradient of one element, and how far the others of its block move afterwards."""

import pytest
import torch

from benchmarks import stall


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "BEFORE", 40)
    monkeypatch.setattr(stall, "SPANS", ((1, 20), (21, 80)))


@pytest.mark.parametrize("name", stall.OPTIMIZERS)
def test_neighbours_move_on(name: str) -> None:
    _, late = stall.shares(stall.OPTIMIZERS[name], size=1e3, blocks=2)
    assert 0.6 < late < 1.4


def test_the_table_has_a_row_for_each_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    stall.main(["--size", "10", "--blocks", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(stall.OPTIMIZERS)
    assert lines[2].startswith("| AdamW |")


def test_a_scale_that_follows_at_once_stalls() -> None:
    """What the default is measured against."""
    from luma_core import TurboAdam
    from luma_core.codecs import RootV, TableM

    codecs = {"exp_avg": TableM(bits=3).to_dict(), "exp_avg_sq": RootV().to_dict()}

    def build(param: torch.nn.Parameter) -> TurboAdam:
        return TurboAdam([param], codecs=codecs, **stall.OURS)

    assert stall.shares(build, size=1e3, blocks=2)[1] < 0.2
