"""What there is, by name: algorithms, codecs, presets and formats, known without PyTorch.

Names are spelled here for whoever shows or checks them: registries, the command line, the server.
What a name stands for is imported from its ``home`` when it is used. What other packages bring is
not here: see `luma_core.extensions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class AlgorithmEntry:
    """One algorithm, as checkpoints name it.

    Attributes:
        name: what ``Manifest.algorithm`` says.
        home: ``module:attribute`` of the optimizer's class.
        rule: ``module:attribute`` of its update rule's.
        description: what it is, in one line.
    """

    name: str
    home: str
    rule: str
    description: str


@dataclass(frozen=True)
class CodecEntry:
    """One codec.

    Attributes:
        name: what a codec's configuration says.
        home: ``module:attribute`` of its class.
        moments: which moments it stores: of both signs, squares, or both kinds.
        description: what it is, in one line.
    """

    name: str
    home: str
    moments: Literal["signed", "square", "both"]
    description: str


@dataclass(frozen=True)
class PresetEntry:
    """A short name for the codecs of all moments of an optimizer.

    Attributes:
        name: what ``codec=`` or ``preset=`` says.
        description: what it is, in one line.
    """

    name: str
    description: str


@dataclass(frozen=True)
class TargetEntry:
    """How a conversion to our own checkpoints keeps the moments.

    Attributes:
        name: what ``convert(codec=)`` and ``luma convert --codec`` say.
        algorithm: name of the algorithm that goes on with the result.
        preset: name of the preset that it stands for.
    """

    name: str
    algorithm: str
    preset: str


@dataclass(frozen=True)
class FormatEntry:
    """One format of optimizer state.

    Attributes:
        name: what it is called.
        place: whether it is a file or a folder.
        endings: what files or folders of it are usually called; none where any name will do.
        detect: ``module:function`` that tells whether a place holds it; None where none can.
        source: ``module:function`` that opens it; None where it is only written.
        sink: ``module:function`` that writes it; None where it is only read.
        description: what it is, in one line.
    """

    name: str
    place: Literal["file", "folder"]
    endings: tuple[str, ...]
    detect: str | None
    source: str | None
    sink: str | None
    description: str


_RULES = "luma_core.rules"
_OPTIM = "luma_core.optim"

ALGORITHMS = (
    AlgorithmEntry(
        "luma", f"{_OPTIM}:LUMA", f"{_RULES}.adamw:AdamWRule", "AdamW with moments in 16 bits"
    ),
    AlgorithmEntry(
        "turbo_adam",
        f"{_OPTIM}:TurboAdam",
        f"{_RULES}.adamw:AdamWRule",
        "AdamW with moments in a few bits",
    ),
    AlgorithmEntry(
        "adam_mini",
        f"{_OPTIM}:AdamMini",
        f"{_RULES}.adam_mini:AdamMiniRule",
        "Adam-mini: one second moment per Hessian block",
    ),
    AlgorithmEntry(
        "lamb",
        f"{_OPTIM}:LAMB",
        f"{_RULES}.lamb:LAMBRule",
        "LAMB: AdamW's update, scaled for each layer",
    ),
    AlgorithmEntry(
        "adamw",
        f"{_OPTIM}:AdamW",
        f"{_RULES}.adamw:AdamWRule",
        "AdamW with moments in any codec; PyTorch's own state too",
    ),
    AlgorithmEntry(
        "lion",
        f"{_OPTIM}:Lion",
        f"{_RULES}.lion:LionRule",
        "Lion: the sign of one moment",
    ),
    AlgorithmEntry(
        "adam",
        f"{_OPTIM}:Adam",
        f"{_RULES}.adam:AdamRule",
        "Adam with weight decay in the gradient",
    ),
    AlgorithmEntry(
        "radam",
        f"{_OPTIM}:RAdam",
        f"{_RULES}.radam:RAdamRule",
        "RAdam: rectified, by plain momentum at first",
    ),
    AlgorithmEntry(
        "nadamw",
        f"{_OPTIM}:NAdamW",
        f"{_RULES}.nadamw:NAdamWRule",
        "NAdamW: AdamW with Nesterov's momentum",
    ),
    AlgorithmEntry(
        "qhadamw",
        f"{_OPTIM}:QHAdamW",
        f"{_RULES}.qhadamw:QHAdamWRule",
        "QHAdamW: AdamW whose means are mixed with the gradient",
    ),
    AlgorithmEntry(
        "muon",
        f"{_OPTIM}:Muon",
        f"{_RULES}.muon:MuonRule",
        "Muon: momentum made orthogonal, with AdamW for what is no matrix",
    ),
)

CODECS = (
    CodecEntry("fp32", "luma_core.codecs.fp32:FP32", "both", "float32 as it is"),
    CodecEntry("bf16", "luma_core.codecs.bf16:BF16", "both", "bfloat16"),
    CodecEntry(
        "fp8_e4m3", "luma_core.codecs.fp8_e4m3:FP8E4M3", "signed", "E4M3 with a scale per block"
    ),
    CodecEntry(
        "luma16_m", "luma_core.codecs.luma16_m:Luma16M", "signed", "16 bits on a logarithmic grid"
    ),
    CodecEntry(
        "luma16_v",
        "luma_core.codecs.luma16_v:Luma16V",
        "square",
        "the root in 16 bits on a logarithmic grid",
    ),
    CodecEntry(
        "table_m", "luma_core.codecs.table_m:TableM", "signed", "2 to 8 bits, levels from a table"
    ),
    CodecEntry(
        "costate_m",
        "luma_core.codecs.costate_m:CoStateM",
        "signed",
        "one bit, with scales by the energy of a block",
    ),
    CodecEntry(
        "root_v",
        "luma_core.codecs.root_v:RootV",
        "square",
        "the root in 2 to 8 bits on an even grid with a floor",
    ),
    CodecEntry(
        "log_v",
        "luma_core.codecs.log_v:LogV",
        "square",
        "the root in 2 to 8 bits on a logarithmic grid",
    ),
    CodecEntry(
        "segment_mean",
        "luma_core.codecs.segment_mean:SegmentMean",
        "square",
        "one float32 per Hessian block",
    ),
)

GENERIC_CODECS = {
    "raw": "luma_core.codecs.generic:Raw",
    "raw_shaped": "luma_core.codecs.generic:RawShaped",
    "plain": "luma_core.codecs.generic:PlainValue",
}
"""Homes of what keeps other optimizers' state as it is, by name; no optimizer here takes them."""

PRESETS = (
    PresetEntry("luma16", "16 bits for each moment"),
    PresetEntry("fp32", "float32, 32 bits for each moment"),
    PresetEntry("bf16", "bfloat16, 16 bits for each moment"),
    PresetEntry("5bit", "about 5 bits for AdamW's two moments together"),
    PresetEntry("8bit", "about 8 bits for AdamW's two moments together"),
    PresetEntry("16bit", "about 16 bits for AdamW's two moments together"),
)

TARGETS = (
    TargetEntry("luma16", "luma", "luma16"),
    TargetEntry("fp32", "luma", "fp32"),
    TargetEntry("bf16", "luma", "bf16"),
    TargetEntry("turbo", "turbo_adam", "5bit"),
    TargetEntry("turbo-8bit", "turbo_adam", "8bit"),
)

_IN = "luma_core.convert.formats"

FORMATS = (
    FormatEntry(
        "luma",
        place="folder",
        endings=(),
        detect="luma_core.checkpoint:exists",
        source=f"{_IN}.luma:open_luma",
        sink=f"{_IN}.luma:write_luma",
        description="our own checkpoints",
    ),
    FormatEntry(
        "dcp",
        place="folder",
        endings=(),
        detect=f"{_IN}.dcp:is_dcp",
        source=f"{_IN}.dcp:open_dcp",
        sink=f"{_IN}.dcp:write_dcp",
        description="torch.distributed.checkpoint",
    ),
    FormatEntry(
        "trainer",
        place="folder",
        endings=(),
        detect="luma_core.convert.beside_model:is_trainer_folder",
        source="luma_core.convert.beside_model:open_trainer",
        sink=None,
        description="checkpoint-N of transformers.Trainer",
    ),
    FormatEntry(
        "accelerate",
        place="folder",
        endings=(),
        detect="luma_core.convert.beside_model:is_accelerate_folder",
        source="luma_core.convert.beside_model:open_accelerate",
        sink=None,
        description="Accelerator.save_state",
    ),
    FormatEntry(
        "deepspeed-universal",
        place="folder",
        endings=(),
        detect=f"{_IN}.universal:is_universal",
        source=f"{_IN}.universal:open_universal",
        sink=f"{_IN}.universal_writing:write_universal",
        description="DeepSpeed's ds_to_universal",
    ),
    FormatEntry(
        "deepspeed",
        place="folder",
        endings=(),
        detect=f"{_IN}.deepspeed:is_deepspeed",
        source=f"{_IN}.deepspeed:open_deepspeed",
        sink=None,
        description="DeepSpeed's engine.save_checkpoint, ZeRO-1, 2 and 3",
    ),
    FormatEntry(
        "lightning",
        place="file",
        endings=(".ckpt",),
        detect=f"{_IN}.lightning:is_lightning",
        source=f"{_IN}.lightning:open_lightning",
        sink=f"{_IN}.lightning:write_lightning",
        description="Lightning's checkpoints",
    ),
    FormatEntry(
        "adamw",
        place="file",
        endings=(".pt", ".pth", ".bin"),
        detect=f"{_IN}.torch_adamw:is_torch_file",
        source=f"{_IN}.torch_adamw:open_torch_adamw",
        sink=f"{_IN}.torch_adamw:write_torch_adamw",
        description="torch.save files of torch.optim.AdamW's state",
    ),
    FormatEntry(
        "fsdp",
        place="file",
        endings=(".pt", ".pth"),
        detect=None,
        source=None,
        sink=f"{_IN}.fsdp:write_fsdp",
        description="torch.save files of full state dicts by parameter name",
    ),
)
"""In the order in which a place is asked whether it holds one. The last that is read takes any
file; ``fsdp`` is read as ``adamw``."""

DEFAULT_TARGET = TARGETS[0].name
"""How a conversion keeps the moments where nothing else is asked for."""

READ_FORMATS = tuple(sorted(entry.name for entry in FORMATS if entry.source))
"""Names of the formats that can be read, sorted."""

WRITTEN_FORMATS = tuple(sorted(entry.name for entry in FORMATS if entry.sink))
"""Names of the formats that can be written, sorted."""

TARGET_NAMES = tuple(entry.name for entry in TARGETS)
"""What ``convert(codec=)`` takes."""


def import_home(home: str) -> Any:
    """Return what ``module:attribute`` names, importing the module."""
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)
