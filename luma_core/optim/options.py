"""Checks of the options of a parameter group, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from luma_core.codecs import codec_from_dict
from luma_core.errors import (
    ConfigurationError,
    UnsupportedGradientError,
    UnsupportedParameterError,
)
from luma_core.optim.option_checks import CHECKS
from luma_core.rules import MomentSpec
from luma_core.sharding import is_flattened

DEFAULT_SEED = 0
"""One for all, so that replicas round alike whatever their generators are seeded with."""

_SEED_BITS = 53
"""Seeds are plain JSON numbers, so they stay exact in every reader."""

PARAMETER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_SWITCH = "True, False or None"
ADAMW_KEYWORDS: dict[str, tuple[Callable[[object], bool], str, str]] = {
    "foreach": (
        lambda value: value is None or isinstance(value, bool),
        _SWITCH,
        "It has no effect here; backend= says how to step.",
    ),
    "fused": (
        lambda value: value is None or isinstance(value, bool),
        _SWITCH,
        "It has no effect here; backend= says how to step.",
    ),
    "amsgrad": (
        lambda value: value is None or value is False,
        "False: the largest second moment so far is not kept",
        "Leave it out, or use torch.optim.AdamW.",
    ),
    "differentiable": (
        lambda value: value is None or value is False,
        "False: autograd cannot record a step of compressed state",
        "Leave it out, or use torch.optim.AdamW.",
    ),
    "decoupled_weight_decay": (
        lambda value: value is None or value is True,
        "True: weight decay is never added to the gradient",
        "Leave it out, or use torch.optim.Adam.",
    ),
}
"""Options of AdamW's groups that have no effect here: the values that may be given, what they must
be, and what to do otherwise. They are checked wherever they are given, and never kept."""


KNOWN_OPTIONS = frozenset(CHECKS)
"""Names of all options that some optimizer of this project has in its groups."""


def check_options(options: Mapping[str, Any], own: Set[str] = frozenset()) -> None:
    """Check every known option of a parameter group.

    Args:
        options: the options.
        own: those of PyTorch's options that groups of the rule have (`Rule.torch_options`).

    Raises:
        ConfigurationError: naming the option, its value and what is required.
    """
    for name, (check, requirement) in CHECKS.items():
        if name in options and not check(options[name]):
            raise ConfigurationError(f"{name}={options[name]!r} must be {requirement}.")
    for name in own & ADAMW_KEYWORDS.keys():
        if name in options and not isinstance(options[name], bool):
            raise ConfigurationError(f"{name}={options[name]!r} must be True or False.")
    check_adamw_keywords(options, own)


def check_adamw_keywords(options: Mapping[str, Any], own: Set[str] = frozenset()) -> None:
    """Check those options of AdamW that have no effect here; quick where there are none.

    Those in ``own`` have one.

    Raises:
        ConfigurationError: naming the option, its value and what is required.
    """
    if options.keys().isdisjoint(ADAMW_KEYWORDS.keys()):
        return
    for name, (check, requirement, hint) in ADAMW_KEYWORDS.items():
        if name in options and name not in own and not check(options[name]):
            raise ConfigurationError(f"{name}={options[name]!r} must be {requirement}.", hint=hint)


def normalize_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a new group as they are kept: NumPy's numbers and seeds as Python's.

    ``betas`` may be one tensor or array of both. Tensors stay, so that whoever gave them may change
    them in place.
    """
    found = {key: _python_number(value) for key, value in options.items()}
    betas: Any = found.get("betas")
    if isinstance(betas, tuple | list) or (hasattr(betas, "ndim") and betas.ndim):
        found["betas"] = tuple(_python_number(beta) for beta in betas)
    if "seed" in found:
        found["seed"] = _choose_seed(found["seed"])
    return found


def _python_number(value: Any) -> Any:
    one = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1)
    return value.item() if one else value


def _choose_seed(seed: Any) -> Any:
    """Return the seed that is meant: ``"torch"`` draws one from torch's global generator."""
    if seed is None:
        return DEFAULT_SEED
    if isinstance(seed, str) and seed == "torch":
        return int(torch.randint(1 << _SEED_BITS, (), dtype=torch.int64, device="cpu").item())
    return seed


def group_of(param_group: Any) -> dict[str, Any]:
    """Return a copy of a new parameter group whose parameters are a list.

    Raises:
        UnsupportedParameterError: it is no mapping, or its parameters have no order.
        ConfigurationError: it has no parameters.
    """
    if not isinstance(param_group, dict):
        raise UnsupportedParameterError(
            f"a parameter group is a {type(param_group).__name__}; it must be a dict.",
            hint="Give {'params': [...]}, with options beside them.",
        )
    if "params" not in param_group:
        raise ConfigurationError(
            "a parameter group has no 'params'.",
            hint="Give {'params': [...]}, with options beside them.",
        )
    params = param_group["params"]
    if isinstance(params, set | frozenset):
        raise UnsupportedParameterError(
            "the 'params' of a group are a set, whose order changes from run to run.",
            hint="Give a list.",
        )
    return {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}


def check_codecs(configs: object, moments: Sequence[MomentSpec]) -> None:
    """Check the codec configurations of a group: one fitting codec per moment, one block size.

    Raises:
        ConfigurationError: naming the moment and what is required.
    """
    names = [spec.name for spec in moments]
    if not isinstance(configs, Mapping) or set(configs) != set(names):
        raise ConfigurationError(
            f"codecs={configs!r} must map each of {', '.join(map(repr, names))} to a codec."
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
    for spec in moments:
        name = codecs[spec.name].name
        if spec.kind == "signed" and not codecs[spec.name].signed:
            raise ConfigurationError(
                f"codecs[{spec.name!r}] is {name!r}, which stores no signs.",
            )
        if spec.kind == "square" and not codecs[spec.name].positive:
            raise ConfigurationError(
                f"codecs[{spec.name!r}] is {name!r}, which takes small values for 0, and updates "
                "are divided by this moment.",
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
    """Check that a parameter can be optimized, or needs no gradients.

    Raises:
        UnsupportedParameterError: its dtype or layout is not supported, or it has no shape yet.
    """
    if is_lazy(param):
        raise UnsupportedParameterError(
            f"parameter {name!r} has no shape yet: its module has seen no input.",
            hint="Run the model once before the optimizer is built.",
        )
    if not param.requires_grad or is_steppable(param):
        return
    if param.layout != torch.strided:
        raise UnsupportedParameterError(
            f"parameter {name!r} has layout {param.layout}; it must be dense (torch.strided).",
            hint=_FROZEN,
        )
    raise UnsupportedParameterError(
        f"parameter {name!r} is {param.dtype}; it must be float32, bfloat16 or float16.",
        hint=f"Convert the model, for example with model.float(). {_FROZEN}",
    )


_FROZEN = "Parameters that need no gradients (requires_grad=False) may be of any kind."


def is_steppable(param: Tensor) -> bool:
    """Return whether a parameter is of a kind that can be stepped; others are frozen."""
    return param.layout == torch.strided and param.dtype in PARAMETER_DTYPES


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


def check_gradient(name: str, param: Tensor, grad: Tensor) -> None:
    """Check that a parameter's gradient can be used.

    Raises:
        UnsupportedGradientError: it is sparse or not a real floating-point tensor, or the parameter
            is of a kind that cannot be stepped.
    """
    if not is_steppable(param):
        raise UnsupportedGradientError(
            f"{name!r} is {param.dtype} ({param.layout}) and has a gradient; only dense float32, "
            "bfloat16 and float16 parameters are stepped.",
            hint="Convert it, or freeze it with requires_grad_(False) and drop its gradient.",
        )
    if grad.layout != torch.strided:
        raise UnsupportedGradientError(
            f"the gradient of {name!r} is sparse ({grad.layout}); it must be dense.",
            hint="Build the layer without sparse=True.",
        )
    if not grad.is_floating_point():
        raise UnsupportedGradientError(
            f"the gradient of {name!r} is {grad.dtype}; it must be a real floating-point tensor."
        )
