"""A second moment above 0 never decodes to 0, in any codec that may store one."""

import pytest
import torch
from torch import Tensor

from luma_core import LUMA, TurboAdam, backends
from luma_core.codecs import BF16, FP8E4M3, FP32, Codec, LogV, Luma16M, Luma16V, RootV, TableM
from luma_core.errors import ConfigurationError

CODECS: list[Codec] = [
    FP32(),
    BF16(),
    Luma16V(),
    Luma16V(block_size=None),
    Luma16V(octaves=13),
    Luma16V(octaves=61, block_size=40),
    RootV(),
    RootV(bits=8, floor=2.0**-10),
    *(LogV(bits=bits) for bits in (2, 3, 4, 5, 6, 8)),
]


def moments() -> Tensor:
    """What float32 holds above 0: in blocks of like elements, of random ones, beside others."""
    exponents = torch.arange(-149, 128).double()
    alike = torch.exp2(exponents)[:, None].expand(-1, 128)
    mixed = torch.exp2(torch.rand(100, 128, generator=torch.Generator().manual_seed(0)) * 276 - 149)
    beside = alike.clone()
    beside[:, 7] = 1e38
    tiny = torch.full((277, 128), 2.0**-149, dtype=torch.float64)
    tiny[:, 3] = torch.exp2(exponents)
    return torch.cat([alike, mixed.double(), beside, tiny]).float()


@pytest.mark.parametrize("native", [False, True], ids=["eager", "native"])
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_is_above_zero_stays_above_zero(codec: Codec, native: bool) -> None:
    x = moments()
    assert bool((x > 0).all())
    for draw in (None, 0, 65535):
        draws = None if draw is None else torch.full(x.shape, draw, dtype=torch.int32)
        coded = (backends.encode if native else Codec.encode_tensor)(codec, x, draws)
        decode = backends.decode if native else Codec.decode_tensor
        assert bool((decode(codec, coded, tuple(x.shape)) > 0).all()), draw


@pytest.mark.parametrize("codec", CODECS[:6], ids=repr)
def test_zeros_stay_zero_beside_others(codec: Codec) -> None:
    x = moments()[277:377].clone()
    x[:, ::2] = 0.0
    decoded = codec.decode_tensor(codec.encode_tensor(x, torch.full_like(x, 65535).int()), x.shape)
    assert torch.equal(decoded == 0, x == 0)


@pytest.mark.parametrize("codec", [Luma16M(), FP8E4M3(), TableM()], ids=repr)
def test_codecs_that_round_to_zero_store_no_second_moment(codec: Codec) -> None:
    codecs = {"exp_avg": TableM().to_dict(), "exp_avg_sq": codec.to_dict()}
    param = torch.nn.Parameter(torch.zeros(4, 64))
    with pytest.raises(ConfigurationError, match=codec.name):
        TurboAdam([param], codecs=codecs)
    with pytest.raises(ConfigurationError, match=codec.name):
        LUMA([{"params": [param], "codecs": codecs}])
