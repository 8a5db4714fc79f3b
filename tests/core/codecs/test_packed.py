"""Codecs of packed n-bit codes: bytes, sizes, options."""

import pytest
import torch

from luma_core.codecs import (
    Codec,
    CoStateM,
    LogV,
    RootV,
    TableM,
    codec_from_dict,
    moment_codecs,
)
from luma_core.codecs.packed import BITS, pack, unpack
from luma_core.errors import ConfigurationError


@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize("shape", [(8,), (3, 16), (2, 5, 128)], ids=str)
def test_packed_codes_are_one_little_endian_stream_of_bits(
    bits: int, shape: tuple[int, ...]
) -> None:
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    streams = packed.view(-1, packed.shape[-1])
    for row, stored in zip(codes.view(-1, shape[-1]), streams, strict=True):
        number = sum(int(code) << bits * place for place, code in enumerate(row))
        assert bytes(stored.tolist()) == number.to_bytes(len(stored), "little")
    back = unpack(packed, bits)
    assert back.dtype == torch.int32
    assert torch.equal(back, codes)


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        *((TableM(bits=bits), bits + 0.125) for bits in BITS),
        *((RootV(bits=bits), bits + 0.125) for bits in BITS),
        *((LogV(bits=bits), bits + 0.125) for bits in BITS),
        (CoStateM(), 1.125),
        (CoStateM(feedback=0.9), 17.125),
        (TableM(bits=3, block_size=64), 3.25),
    ],
    ids=str,
)
def test_codes_take_no_more_than_their_bits_and_a_scale_per_block(
    codec: Codec, bits: float
) -> None:
    fields = codec.init((64, 1024), "cpu")
    assert sum(field.nbytes for field in fields.values()) * 8 == bits * 64 * 1024


def test_small_tensors_stay_in_float32_where_asked() -> None:
    configs = {"exp_avg": TableM(min_elements=4096).to_dict(), "exp_avg_sq": RootV().to_dict()}
    names = {
        shape: tuple(codec.name for codec in moment_codecs(configs, shape).values())
        for shape in [(64, 63), (64, 64)]
    }
    assert names == {(64, 63): ("fp32", "root_v"), (64, 64): ("table_m", "root_v")}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "table_m", "bits": 7}, "bits=7 of codec table_m must be one of 2, 3, 4, 5, 6, 8"),
        ({"name": "root_v", "bits": True}, "bits=True of codec root_v must be one of"),
        ({"name": "log_v", "bits": 1}, "bits=1 of codec log_v must be one of"),
        ({"name": "costate_m", "bits": 2}, "bits=2 of codec costate_m must be one of 1"),
        ({"name": "log_v", "block_size": None}, "block_size=None of codec log_v must be a multip"),
        ({"name": "log_v", "block_size": 100}, "block_size=100 of codec log_v must be a multiple"),
        ({"name": "costate_m", "block_size": 40}, "must be a power of two from 8 to 4096"),
        ({"name": "costate_m", "block_size": 8192}, "must be a power of two from 8 to 4096"),
        ({"name": "table_m", "min_elements": -1}, "min_elements=-1 of codec table_m must be an in"),
        ({"name": "table_m", "min_elements": 1.5}, "min_elements=1.5 of codec table_m must be an"),
        ({"name": "table_m", "bits": 2, "levels": [0, 1]}, "must be 4 ascending numbers"),
        ({"name": "table_m", "bits": 2, "levels": [-1, 0, 1, 0.5]}, "must be 4 ascending numbers"),
        ({"name": "table_m", "bits": 2, "levels": [-2, 0, 0.5, 1]}, "must be numbers from -1 to 1"),
        ({"name": "table_m", "levels": "abc"}, "must be numbers from -1 to 1"),
        ({"name": "root_v", "floor": 1}, "floor=1 of codec root_v must be from 2**-10 to below 1"),
        ({"name": "root_v", "floor": "low"}, "floor='low' of codec root_v must be from 2**-10"),
        ({"name": "costate_m", "null_pct": -0.1}, "null_pct=-0.1 of codec costate_m must be"),
        ({"name": "costate_m", "amp_pct": 0.05}, "amp_pct=0.05 of codec costate_m must be a num"),
        ({"name": "costate_m", "feedback": 1}, "feedback=1 of codec costate_m must be from 0"),
        ({"name": "log_v", "floor": 0.25}, "codec 'log_v' has no option 'floor'"),
    ],
    ids=str,
)
def test_bad_configuration_is_a_clear_error(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        codec_from_dict(config)
    assert message in str(caught.value)
