"""Every codec of the catalog keeps the promises of a codec."""

from luma_core import catalog
from luma_core.codecs import (
    BF16,
    FP8E4M3,
    FP32,
    CoStateM,
    LogV,
    Luma16M,
    Luma16V,
    Partition,
    RootV,
    SegmentMean,
    TableM,
)
from luma_core.codecs.packed import BITS
from luma_core.codecs.registry import codec_type
from luma_core.testing.codec import CodecConformance

SIZES = (1e-45, 1e-40, 1e-30, 1e-3, 1.0, 1e30, 3.4e38)
"""Nearly all that float32 holds."""


class TestFP32(CodecConformance):
    codecs = (FP32(),)
    relative_error = 0.0
    sample_error = (0.0, 0.0)


class TestBF16(CodecConformance):
    codecs = (BF16(),)
    relative_error = 2**-7
    sample_error = (2**-7, 1e-12)


class TestFP8(CodecConformance):
    codecs = (FP8E4M3(), FP8E4M3(block_size=None), FP8E4M3(block_size=40))
    relative_error = 2**-3
    sample_error = (2**-3, 1e-6)
    sizes = SIZES


class TestLuma16M(CodecConformance):
    codecs = (Luma16M(), Luma16M(block_size=None), Luma16M(block_size=40))
    relative_error = 2**-9
    sample_error = (2e-3, 1e-12)
    sizes = SIZES


class TestLuma16V(CodecConformance):
    codecs = (
        Luma16V(),
        Luma16V(block_size=None),
        Luma16V(block_size=40),
        Luma16V(octaves=13),
        Luma16V(octaves=61, block_size=40),
    )
    relative_error = 2**-9
    sample_error = (2e-3, 1e-12)
    sizes = SIZES


class TestTableM(CodecConformance):
    codecs = (
        *(TableM(bits=bits) for bits in BITS),
        TableM(block_size=40),
        TableM(bits=2, levels=(-0.5, 0.0, 0.25, 1.0)),
    )
    relative_error = 2**-8


class TestCoStateM(CodecConformance):
    codecs = (CoStateM(), CoStateM(block_size=16), CoStateM(feedback=0.9))
    relative_error = 2**-8
    keeps_zeros = False
    independent_blocks = False


class TestRootV(CodecConformance):
    codecs = (
        *(RootV(bits=bits) for bits in BITS),
        RootV(block_size=40),
        RootV(bits=3, floor=2.0**-10),
        RootV(bits=8, floor=2.0**-10),
    )
    relative_error = 2**-6
    restores = False
    keeps_zeros = False


class TestLogV(CodecConformance):
    codecs = (*(LogV(bits=bits) for bits in BITS), LogV(block_size=40))
    relative_error = 0.35
    restores = False
    keeps_zeros = False


class TestSegmentMean(CodecConformance):
    codecs = (SegmentMean(partition=Partition.whole((4, 200))),)
    relative_error = 2**-20
    restores = False
    keeps_zeros = False

    def of_shape(self, codec, shape):
        return SegmentMean(partition=Partition.whole(shape))


def test_every_codec_of_the_catalog_has_a_suite() -> None:
    tried = {codec for kind in CodecConformance.__subclasses__() for codec in kind.codecs}
    assert {codec.name for codec in tried} >= {entry.name for entry in catalog.CODECS}
    assert all(codec_type(codec.name) is type(codec) for codec in tried)
