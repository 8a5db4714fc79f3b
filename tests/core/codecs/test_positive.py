"""A second moment above 0 never decodes to 0, in any codec that may store one."""

import pytest
import torch

from luma_core import LUMA, TurboAdam
from luma_core.codecs import FP8E4M3, Codec, Luma16M, TableM
from luma_core.errors import ConfigurationError


@pytest.mark.parametrize("codec", [Luma16M(), FP8E4M3(), TableM()], ids=repr)
def test_codecs_that_round_to_zero_store_no_second_moment(codec: Codec) -> None:
    codecs = {"exp_avg": TableM().to_dict(), "exp_avg_sq": codec.to_dict()}
    param = torch.nn.Parameter(torch.zeros(4, 64))
    with pytest.raises(ConfigurationError, match=codec.name):
        TurboAdam([param], codecs=codecs)
    with pytest.raises(ConfigurationError, match=codec.name):
        LUMA([{"params": [param], "codecs": codecs}])
