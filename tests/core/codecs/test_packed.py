"""Every codec of packed n-bit codes: bytes, layouts, odd shapes and values, slicing, options."""

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
from tests.core.codecs.samples import SHAPES, draws, sample

CODECS: list[Codec] = [
    *(kind(bits=bits) for kind in (TableM, RootV, LogV) for bits in BITS),
    *(kind(block_size=40) for kind in (TableM, RootV, LogV)),
    CoStateM(),
    CoStateM(block_size=16),
    CoStateM(feedback=0.9),
]
SOME = [c for c in CODECS if c.bits in (1, 3, 5)] + [RootV(), TableM(block_size=40)]


def ids(codec: Codec) -> str:
    return f"{codec.name}-{codec.bits}-{codec.block_size}-{getattr(codec, 'feedback', '')}"


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


@pytest.mark.parametrize("codec", CODECS, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_stored_as_its_layout_says(codec: Codec, shape: tuple[int, ...]) -> None:
    x = sample(codec, shape)
    fields = codec.encode_tensor(x, draws(shape))
    assert fields.keys() == codec.layout(shape).keys()
    for name, spec in codec.layout(shape).items():
        assert fields[name].dtype == spec.dtype
        assert tuple(fields[name].shape) == spec.shape
    decoded = codec.decode_tensor(fields, shape)
    assert decoded.shape == x.shape
    assert torch.isfinite(decoded).all()


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


@pytest.mark.parametrize("codec", CODECS, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_fields_decode_to_zero_and_zeros_encode_to_zero(
    codec: Codec, shape: tuple[int, ...]
) -> None:
    assert torch.equal(codec.decode_tensor(codec.init(shape, "cpu"), shape), torch.zeros(shape))
    for zeros in (torch.zeros(shape), -torch.zeros(shape)):
        fields = codec.encode_tensor(zeros, draws(shape))
        assert torch.equal(codec.decode_tensor(fields, shape), torch.zeros(shape))


@pytest.mark.parametrize("codec", [c for c in CODECS if c.signed], ids=ids)
@pytest.mark.parametrize("shape", [(7, 130), (64, 2, 33), (300,)], ids=str)
def test_encoding_a_decoded_first_moment_restores_every_value(
    codec: Codec, shape: tuple[int, ...]
) -> None:
    decoded = codec.decode_tensor(codec.encode_tensor(sample(codec, shape, spread=2.0)), shape)
    again = codec.decode_tensor(codec.encode_tensor(decoded), shape)
    assert torch.equal(again.view(torch.int32), decoded.view(torch.int32))


@pytest.mark.parametrize("codec", [c for c in CODECS if c.signed], ids=ids)
def test_the_code_of_minus_x_decodes_to_minus_that_of_x(codec: Codec) -> None:
    x = sample(codec, (7, 130))
    decoded = codec.decode_tensor(codec.encode_tensor(x), x.shape)
    mirrored = codec.decode_tensor(codec.encode_tensor(-x), x.shape)
    assert torch.equal(mirrored, -decoded)
    assert decoded.any()


@pytest.mark.parametrize("codec", SOME, ids=ids)
@pytest.mark.parametrize("shape", [(12, 130), (12, 4, 33), (12, 9000)], ids=str)
def test_slicing_rows_of_the_fields_is_slicing_the_tensor(
    codec: Codec, shape: tuple[int, ...]
) -> None:
    noise = draws(shape)
    x, later = sample(codec, shape), sample(codec, shape, spread=1.1) * 0.9
    whole = codec.encode_tensor(x, noise)
    updated = stepped(codec, whole, later, noise)
    for rows in (slice(0, 5), slice(5, 12), slice(3, 3)):
        part = codec.encode_tensor(x[rows], noise[rows])
        for name, tensor in whole.items():
            assert torch.equal(part[name], tensor[rows]), name
        part = stepped(codec, part, later[rows], noise[rows])
        for name, tensor in updated.items():
            assert torch.equal(part[name], tensor[rows]), name


def stepped(
    codec: Codec, fields: dict[str, torch.Tensor], x: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Fields after a step that makes the moment ``x``."""
    fields = {name: field.clone() for name, field in fields.items()}
    for tile in codec.grid(x.shape).tiles():
        fitted = codec.refit(tile.read(x), codec.read_tile(fields, tile))
        codec.write_tile(
            fields, tile, {**fitted, **codec.encode(tile.read(x), fitted, tile.read(noise))}
        )
    return fields


@pytest.mark.parametrize("codec", SOME, ids=ids)
def test_non_contiguous_tensors_code_like_contiguous_ones(codec: Codec) -> None:
    x = sample(codec, (64, 3, 5, 7)).to(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    noise = draws(x.shape)
    a, b = codec.encode_tensor(x, noise), codec.encode_tensor(x.contiguous(), noise)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("codec", CODECS, ids=ids)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-3, 1.0, 1e30, 1e37])
def test_constant_tensors_of_any_size_are_kept(codec: Codec, size: float) -> None:
    x = torch.full((4, 200), size)
    decoded = codec.decode_tensor(codec.encode_tensor(x), x.shape)
    tolerance = 2**-8 if codec.signed else 0.35 if codec.name == "log_v" else 2**-6
    torch.testing.assert_close(decoded, x, rtol=tolerance, atol=0)


@pytest.mark.parametrize("codec", [TableM(bits=3), LogV(bits=5), RootV()], ids=ids)
@pytest.mark.parametrize("value", [1e37, torch.nan, torch.inf])
def test_a_huge_or_bad_element_costs_only_its_own_block(codec: Codec, value: float) -> None:
    x = sample(codec, (4, 512))
    plain = codec.encode_tensor(x)
    x[1, 5] = value
    fields = codec.encode_tensor(x)
    before, after = (codec.decode_tensor(f, (4, 512)) for f in (plain, fields))
    others = torch.ones(4, 512, dtype=torch.bool)
    others[1, :128] = False
    assert torch.equal(after[others], before[others])
    assert bool(torch.isfinite(after[~others]).any()) == (value == 1e37)


def test_configuration_round_trips_through_json_values() -> None:
    for codec in [*CODECS, TableM(bits=2, levels=(-0.5, 0.0, 0.25, 1.0)), RootV(floor=0.5)]:
        assert codec_from_dict(codec.to_dict()) == codec


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
