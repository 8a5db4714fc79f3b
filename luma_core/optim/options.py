"""Checks of the options of a parameter group, in one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luma_core.codecs import codec_from_dict
from luma_core.codecs.base import is_number_in
from luma_core.errors import ConfigurationError, UnsupportedParameterError
from luma_core.sharding import is_flattened

NONFINITE_POLICIES = ("skip", "raise", "propagate")
PARAMETER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_LARGEST = sys.float_info.max


def _is_number(value: object) -> bool:
    return is_number_in(value, -_LARGEST, _LARGEST)


def _is_rate(value: object) -> bool:
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            return False
        if value.device.type != "cpu":  # kernels read it as it is; its value may change any time
            return value.dtype == torch.float32
        value = float(value)
    return _is_number(value) and float(value) >= 0.0  # type: ignore[arg-type]


def _is_non_negative(value: object) -> bool:
    return _is_number(value) and float(value) >= 0.0  # type: ignore[arg-type]


def _is_betas(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bound(value: object) -> bool:
    return value is None or (_is_number(value) and float(value) > 0.0)  # type: ignore[arg-type]


_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "lr": (
        _is_rate,
        "a finite number of 0 or more, or a tensor of one such element (float32 on a GPU)",
    ),
    "betas": (_is_betas, "two numbers from 0 to below 1"),
    "eps": (_is_non_negative, "a finite number of 0 or more"),
    "weight_decay": (_is_non_negative, "a finite number of 0 or more"),
    "max_grad_norm": (_is_bound, "a finite number above 0, or None"),
    "trust_clip": (lambda value: isinstance(value, bool), "True or False"),
    "always_adapt": (lambda value: isinstance(value, bool), "True or False"),
    "bias_correction": (lambda value: isinstance(value, bool), "True or False"),
    "maximize": (lambda value: isinstance(value, bool), "True or False"),
    "capturable": (lambda value: isinstance(value, bool), "True or False"),
    "stochastic_rounding": (lambda value: isinstance(value, bool), "True or False"),
    "min_compress_elements": (_is_count, "an integer of 0 or more"),
    "nonfinite": (
        lambda value: value in NONFINITE_POLICIES,
        "one of " + ", ".join(map(repr, NONFINITE_POLICIES)),
    ),
    "seed": (_is_count, "an integer of 0 or more"),
}


KNOWN_OPTIONS = frozenset(_CHECKS)
"""Names of all options that some optimizer of this project has in its groups."""


def check_options(options: Mapping[str, Any]) -> None:
    """Check every known option of a parameter group.

    Raises:
        ConfigurationError: naming the option, its value and what is required.
    """
    for name, (check, requirement) in _CHECKS.items():
        if name in options and not check(options[name]):
            raise ConfigurationError(f"{name}={options[name]!r} must be {requirement}.")


def check_codecs(configs: object, moments: Sequence[str]) -> None:
    """Check the codec configurations of a group: one fitting codec per moment, one block size.

    Raises:
        ConfigurationError: naming the moment and what is required.
    """
    if not isinstance(configs, Mapping) or set(configs) != set(moments):
        raise ConfigurationError(
            f"codecs={configs!r} must map each of {', '.join(map(repr, moments))} to a codec."
        )
    codecs = {}
    for moment, config in configs.items():
        if not isinstance(config, Mapping):
            raise ConfigurationError(
                f"codecs[{moment!r}]={config!r} must be a codec's configuration.",
                hint="Use what codec.to_dict() returns.",
            )
        codecs[moment] = codec_from_dict(config)
    if len({codec.block_size for codec in codecs.values()}) > 1:
        raise ConfigurationError(f"codecs={configs!r} must all have one block_size.")
    if not codecs[moments[0]].signed:
        raise ConfigurationError(
            f"codecs[{moments[0]!r}] is {codecs[moments[0]].name!r}, which stores no signs."
        )
    if not codecs[moments[1]].positive:
        raise ConfigurationError(
            f"codecs[{moments[1]!r}] is {codecs[moments[1]].name!r}, which takes small values for "
            "0, and updates are divided by this moment.",
            hint="Use a codec of second moments: luma16_v, log_v, root_v, bf16 or fp32.",
        )


def check_parameter_codecs(configs: object, moments: Sequence[str]) -> None:
    """Check the codec configurations of single parameters of a group.

    Raises:
        ConfigurationError: naming the parameter and what is required.
    """
    if not isinstance(configs, Mapping):
        raise ConfigurationError(
            f"parameter_codecs={configs!r} must map parameter names to codecs by moment."
        )
    for name, own in configs.items():
        if not isinstance(own, Mapping) or not set(own) <= set(moments):
            raise ConfigurationError(
                f"parameter_codecs[{name!r}]={own!r} must map some of "
                f"{', '.join(map(repr, moments))} to codecs."
            )
        for moment, config in own.items():
            if not isinstance(config, Mapping):
                raise ConfigurationError(
                    f"parameter_codecs[{name!r}][{moment!r}]={config!r} must be a codec's "
                    "configuration."
                )
            codec_from_dict(config)


def check_parameter(name: str, param: Tensor) -> None:
    """Check that a parameter can be optimized.

    Raises:
        UnsupportedParameterError: its dtype or layout is not supported.
    """
    if param.layout != torch.strided:
        raise UnsupportedParameterError(
            f"parameter {name!r} has layout {param.layout}; it must be dense (torch.strided)."
        )
    if param.dtype not in PARAMETER_DTYPES:
        raise UnsupportedParameterError(
            f"parameter {name!r} is {param.dtype}; it must be float32, bfloat16 or float16.",
            hint="Convert the model, for example with model.float().",
        )


def check_not_flattened(name: str, param: Tensor, optimizer: str) -> None:
    """Check that a parameter is not one that FSDP1 made.

    Raises:
        UnsupportedParameterError: it is, and has neither the shape nor the rows of the model's.
    """
    if is_flattened(param):
        raise flattened_error(name, optimizer)


def flattened_error(name: str, optimizer: str) -> UnsupportedParameterError:
    """Return the error of an optimizer that needs shapes and was given a flat parameter."""
    return UnsupportedParameterError(
        f"parameter {name!r} is a flat one, as FullyShardedDataParallel and DeepSpeed's ZeRO make "
        f"them; {optimizer} needs parameters with their shapes.",
        hint="Shard the model with torch.distributed.fsdp.fully_shard, or use LUMA or TurboAdam.",
    )


def check_gradient(name: str, grad: Tensor) -> None:
    """Check that a gradient can be used.

    Raises:
        UnsupportedParameterError: it is sparse or not a real floating-point tensor.
    """
    if grad.layout != torch.strided:
        raise UnsupportedParameterError(
            f"the gradient of {name!r} is sparse ({grad.layout}); it must be dense.",
            hint="Build the layer without sparse=True.",
        )
    if not grad.is_floating_point():
        raise UnsupportedParameterError(
            f"the gradient of {name!r} is {grad.dtype}; it must be a real floating-point tensor."
        )
