"""Launcher of the native step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from luma_core.codecs import Codec
from luma_core.optim.rules import AdamWHyper, AdamWRule, ParameterStep, Rule
from luma_core.optim.rules.adamw import MOMENTS
from luma_kernels.cpu.coding import (
    DTYPES,
    describe_layout,
    describe_moment,
    is_plain,
    moment_kind,
    stored_as_specified,
    thread_count,
)
from luma_kernels.cpu.library import native_library
from luma_kernels.cpu.structs import LOG_ROOT, LOG_SIGNED, PLAIN, Step

_KINDS = ((LOG_SIGNED, LOG_ROOT), (PLAIN, PLAIN))


def unsupported_codecs(rule: Rule, codecs: Mapping[str, Codec]) -> str:
    """Return why the library cannot step moments stored by ``codecs``; empty if it can."""
    if type(rule) is not AdamWRule or tuple(codecs) != MOMENTS:
        return f"there is no native kernel of the rule {type(rule).__name__}"
    kinds = tuple(moment_kind(codec) for codec in codecs.values())
    if kinds not in _KINDS or len({codec.block_size for codec in codecs.values()}) > 1:
        names = " and ".join(codec.name for codec in codecs.values())
        return f"there is no native kernel of the codecs {names} together"
    return ""


def unsupported_step(rule: Rule, item: ParameterStep) -> str:
    """Return why the library cannot take a step; empty if it can."""
    for name, tensor in (("parameter", item.param), ("gradient", item.grad)):
        if tensor.dtype not in DTYPES:
            return f"the {name} is {tensor.dtype}"
        if not is_plain(tensor):
            return f"the {name} is not a plain tensor on the CPU"
    if item.grad_factor is not None:
        return "the gradient is to be scaled"
    lr = item.hyper.lr
    if isinstance(lr, Tensor) and (lr.dim() or lr.device.type != "cpu"):
        return "lr is a tensor with dimensions or not on the CPU"
    for stored in item.moments.values():
        if not stored_as_specified(stored.codec, stored.fields, item.param.shape):
            return "the stored moments are not contiguous tensors on the CPU"
    return unsupported_codecs(rule, {name: s.codec for name, s in item.moments.items()})


def step_parameter(
    item: ParameterStep,
    *,
    first_index: int = 0,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> Tensor:
    """Update one parameter and its stored moments in place, as the eager `step_parameter` does.

    Results do not depend on threads or instruction sets. A parameter or gradient that is not
    contiguous is copied for the step.

    Args:
        item: a step for which `unsupported_step` found nothing.
        first_index: index of the tensor's first element in the whole parameter; selects its noise.
        threads: number of threads; torch's by default.
        instruction_set: one of the library's; the fastest by default.

    Returns:
        int64 0-d tensor: blocks whose new moments were not all finite.

    Raises:
        BackendUnavailableError: there is no library, or it has no such instruction set here.
    """
    first, second = (item.moments[name] for name in MOMENTS)
    param = item.param.contiguous()
    grad = item.grad.contiguous()
    step = Step(
        param=param.data_ptr(),
        grad=grad.data_ptr(),
        first=describe_moment(first.codec, first.fields),
        second=describe_moment(second.codec, second.fields),
        layout=describe_layout(first.codec, param.shape),
        first_index=first_index,
        param_dtype=DTYPES[param.dtype],
        grad_dtype=DTYPES[grad.dtype],
        k0=item.keys.k0 & 0xFFFFFFFF,
        k1=item.keys.k1 & 0xFFFFFFFF,
        skip_nonfinite=item.skip_nonfinite,
        round_param=item.stochastic_rounding and param.dtype == torch.bfloat16,
        maximize=item.hyper.maximize,
        **_scalars(item.hyper),
    )
    bad = native_library().step(step, thread_count(param.numel(), threads), instruction_set)
    if param is item.param:
        # Writing through a pointer, unlike PyTorch's own operations, is not seen by autograd.
        torch.autograd.graph.increment_version(param)
    else:
        item.param.copy_(param)
    return torch.tensor(bad)


def _scalars(hyper: AdamWHyper) -> dict[str, float]:
    weight = 1.0 - hyper.beta1
    from_grad = weight >= 0.5  # as torch.lerp
    return {
        "lerp_from_grad": from_grad,
        "lerp": weight - 1.0 if from_grad else weight,
        "beta2": hyper.beta2,
        "one_minus_beta2": 1.0 - hyper.beta2,
        "inverse_root_correction2": 1.0 / math.sqrt(hyper.bias_correction2),
        "eps": hyper.eps,
        "decay": float(1.0 - hyper.lr * hyper.weight_decay),
        "rate": float(hyper.lr / hyper.bias_correction1),
    }
