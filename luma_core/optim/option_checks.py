"""What values the options of parameter groups may have."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from luma_core.codecs.base import is_number_in
from luma_core.rules.muon import SCALES
from luma_core.rules.newton_schulz import NS_DTYPES, SCHEDULES

NONFINITE_POLICIES = ("skip", "raise", "propagate")

_LARGEST = sys.float_info.max


def _is_number(value: object) -> bool:
    return is_number_in(value, -_LARGEST, _LARGEST)


def _is_real_scalar(value: Tensor) -> bool:
    return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool


def _is_rate(value: object) -> bool:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        # Kernels read it as it is; its value may change any time.
        return _is_real_scalar(value)
    return _is_non_negative(value)


def _is_non_negative(value: object) -> bool:
    if isinstance(value, Tensor):
        return _is_real_scalar(value) and _is_non_negative(float(value))
    return _is_number(value) and float(value) >= 0.0  # type: ignore[arg-type]


def _is_betas(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(_is_non_negative(beta) and float(beta) < 1.0 for beta in value)
    )


def _is_decay(value: object) -> bool:
    return value is None or (_is_number(value) and float(value) >= 0.0)  # type: ignore[arg-type]


def _is_shares(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(is_number_in(share, 0.0, 1.0) for share in value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_decay_rate(value: object) -> bool:
    return _is_non_negative(value) and float(value) < 1.0  # type: ignore[arg-type]


def _are_ns_coefficients(value: object) -> bool:
    if isinstance(value, str):
        return value in SCHEDULES
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(triple, list | tuple) and len(triple) == 3 and all(map(_is_number, triple))
            for triple in value
        )
    )


def _is_steps(value: object) -> bool:
    return value is None or (_is_count(value) and 0 < value < 100)  # type: ignore[operator]


def _is_bound(value: object) -> bool:
    return value is None or (_is_number(value) and float(value) > 0.0)  # type: ignore[arg-type]


CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "lr": (
        _is_rate,
        "a finite number of 0 or more, or a tensor of one such element",
    ),
    "betas": (_is_betas, "two numbers from 0 to below 1, or tensors of one such element"),
    "eps": (_is_non_negative, "a finite number of 0 or more, or a tensor of one such element"),
    "weight_decay": (
        _is_non_negative,
        "a finite number of 0 or more, or a tensor of one such element",
    ),
    "momentum_decay": (_is_decay, "a finite number of 0 or more, or None"),
    "nus": (_is_shares, "two numbers from 0 to 1"),
    "max_grad_norm": (_is_bound, "a finite number above 0, or None"),
    "trust_clip": (lambda value: isinstance(value, bool), "True or False"),
    "always_adapt": (lambda value: isinstance(value, bool), "True or False"),
    "bias_correction": (lambda value: isinstance(value, bool), "True or False"),
    "use_muon": (lambda value: isinstance(value, bool), "True or False"),
    "momentum": (_is_decay_rate, "a number from 0 to below 1"),
    "nesterov": (lambda value: isinstance(value, bool), "True or False"),
    "ns_coefficients": (
        _are_ns_coefficients,
        f"one of {', '.join(map(repr, SCHEDULES))}, or a list of lists of three numbers",
    ),
    "ns_steps": (_is_steps, "an integer from 1 to 99, or None"),
    "ns_eps": (_is_non_negative, "a finite number of 0 or more"),
    "ns_dtype": (
        lambda value: value in NS_DTYPES,
        f"one of {', '.join(map(repr, NS_DTYPES))}",
    ),
    "adjust_lr_fn": (
        lambda value: value in SCALES,
        f"one of {', '.join(map(repr, SCALES))}",
    ),
    "split_rows": (
        lambda value: value is None or (_is_count(value) and value != 0),
        "an integer above 0, or None",
    ),
    "neuron_beta2": (
        lambda value: value is None or _is_decay_rate(value),
        "a number from 0 to below 1, or None",
    ),
    "maximize": (lambda value: isinstance(value, bool), "True or False"),
    "capturable": (lambda value: isinstance(value, bool), "True or False"),
    "stochastic_rounding": (lambda value: isinstance(value, bool), "True or False"),
    "min_compress_elements": (_is_count, "an integer of 0 or more"),
    "nonfinite": (
        lambda value: value in NONFINITE_POLICIES,
        "one of " + ", ".join(map(repr, NONFINITE_POLICIES)),
    ),
    "seed": (_is_count, "an integer of 0 or more, 'torch' or None"),
}
"""By option: whether a value is right, and what it must be."""
