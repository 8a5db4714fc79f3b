"""The second moment after 2000 steps: the 8bit preset keeps its size and its spread."""

import pytest

from benchmarks.state_quality import main, second_quality, stored_by
from luma_core.codecs import codec_from_dict
from luma_core.optim import turbo_codecs

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = 24
PEER = {0.3: 0.77, 1.0: 1.11}
"""Standard deviations of log(stored / exact) of TurboAdam 0.2.0."""


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_the_8bit_preset_keeps_the_second_moment(sigma: float) -> None:
    codec = codec_from_dict(turbo_codecs(preset="8bit")["exp_avg_sq"])
    found = second_quality(stored_by(codec, BLOCKS), sigma, steps=2000, blocks=BLOCKS)
    assert found.spread == pytest.approx(1.0, abs=0.15)
    assert found.median_ratio == pytest.approx(1.0, abs=0.05)
    if sigma in PEER:
        assert found.sd_log_error < PEER[sigma] / 2


def test_the_benchmark_prints_a_row_for_each_codec(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--steps", "5", "--blocks", "2"])
    printed = capsys.readouterr().out
    for name in ("RootV, 2 bits", "LogV, 5 bits", "TurboAdam", "CoState", "TableM, 3 bits"):
        assert name in printed
