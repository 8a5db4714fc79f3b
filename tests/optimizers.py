"""The optimizers that tests of what all promise go through: a new one is added here."""

from collections.abc import Callable
from functools import partial

from luma_core import (
    LAMB,
    LUMA,
    Adam,
    AdamMini,
    AdamW,
    Lion,
    Muon,
    NAdamW,
    QHAdamW,
    RAdam,
    TurboAdam,
)
from luma_core.optim import CompressedOptimizer

Build = Callable[..., CompressedOptimizer]

CLASSES = (AdamW, LUMA, TurboAdam, AdamMini, LAMB, Lion, Muon, Adam, RAdam, NAdamW, QHAdamW)

VARIANTS: dict[str, Build] = {
    "adamw-bf16": partial(AdamW, codec="bf16"),
    "luma": LUMA,
    "lion": Lion,
    "lion-bf16": partial(Lion, codec="bf16"),
    # Of Adam's family, which share their steps, those that use all of it.
    "adam": partial(Adam, weight_decay=0.1),
    "qhadamw": partial(QHAdamW, nus=(0.7, 0.9)),
    "nadamw": partial(NAdamW, momentum_decay=4e-3),
    "muon": Muon,
    "muon-neurons": partial(Muon, neuron_beta2=0.95),
    "lamb": partial(LAMB, max_grad_norm=0.1),
    "adam-mini": AdamMini,
    "turboadam": TurboAdam,
    "turboadam-8bit": partial(TurboAdam, preset="8bit"),
    "turboadam-costate": partial(TurboAdam, m_codec="costate", error_feedback=True),
}
