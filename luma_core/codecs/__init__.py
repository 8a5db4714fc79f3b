"""How one moment tensor is stored: one file per codec, a base class and a registry."""

from luma_core.codecs.base import Codec, Fields, FieldSpec
from luma_core.codecs.bf16 import BF16
from luma_core.codecs.blocks import MIN_ROW_ELEMENTS, TILE_ELEMENTS, BlockGrid, Tile
from luma_core.codecs.costate_m import CoStateM
from luma_core.codecs.fp8_e4m3 import FP8E4M3
from luma_core.codecs.fp32 import FP32
from luma_core.codecs.log_v import LogV
from luma_core.codecs.luma16_m import Luma16M
from luma_core.codecs.luma16_v import Luma16V
from luma_core.codecs.registry import codec_from_dict, codec_names, register_codec
from luma_core.codecs.root_v import RootV
from luma_core.codecs.segment_mean import SegmentMean
from luma_core.codecs.segments import Partition
from luma_core.codecs.select import MIN_COMPRESS_ELEMENTS, moment_codecs, parameter_codecs
from luma_core.codecs.table_m import TableM

__all__ = [
    "BF16",
    "FP8E4M3",
    "FP32",
    "MIN_COMPRESS_ELEMENTS",
    "MIN_ROW_ELEMENTS",
    "TILE_ELEMENTS",
    "BlockGrid",
    "CoStateM",
    "Codec",
    "FieldSpec",
    "Fields",
    "LogV",
    "Luma16M",
    "Luma16V",
    "Partition",
    "RootV",
    "SegmentMean",
    "TableM",
    "Tile",
    "codec_from_dict",
    "codec_names",
    "moment_codecs",
    "parameter_codecs",
    "register_codec",
]
