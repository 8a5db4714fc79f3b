"""Optimizers whose state is compressed: rules, their base and their backends."""

from luma_core.moved import give_moved_names
from luma_core.optim.adam_family import Adam, NAdamW, QHAdamW, RAdam
from luma_core.optim.adam_mini import AdamMini
from luma_core.optim.adamw import AdamW
from luma_core.optim.backward import StepsInBackward, step_in_backward
from luma_core.optim.base import CompressedOptimizer
from luma_core.optim.common_options import CommonOptions
from luma_core.optim.estimate import StateEstimate, estimate_state
from luma_core.optim.fsdp1 import load_unflattened, unflattened
from luma_core.optim.lamb import LAMB
from luma_core.optim.lion import Lion
from luma_core.optim.luma import LUMA, luma_codecs
from luma_core.optim.muon import Muon
from luma_core.optim.muon_groups import MuonTable, assign_parameters
from luma_core.optim.parity import ParityReport, ParityRow, parity_check
from luma_core.optim.state_io.gathered import GatheredState
from luma_core.optim.telemetry import ParameterTelemetry
from luma_core.optim.turbo_adam import TurboAdam, turbo_codecs

__all__ = [
    "LAMB",
    "LUMA",
    "Adam",
    "AdamMini",
    "AdamW",
    "CommonOptions",
    "CompressedOptimizer",
    "GatheredState",
    "Lion",
    "Muon",
    "MuonTable",
    "NAdamW",
    "ParameterTelemetry",
    "ParityReport",
    "ParityRow",
    "QHAdamW",
    "RAdam",
    "StateEstimate",
    "StepsInBackward",
    "TurboAdam",
    "assign_parameters",
    "estimate_state",
    "load_unflattened",
    "luma_codecs",
    "parity_check",
    "step_in_backward",
    "turbo_codecs",
    "unflattened",
]

__getattr__ = give_moved_names(__name__, {"luma_core.rules": ["AdamWHyper", "AdamWRule"]})
